//! The patch embedding on our kernels.

use std::sync::{Mutex, PoisonError};

use super::{CpuActivations, CpuOps, values};
use crate::engine::backend::BackendError;
use crate::kernels::gemm::PackedWeights;
use crate::model::ops::{Epilogue, Ops, PatchEmbeddingWeights};
use crate::task::Pixels;

/// Weights of the patch embedding, which is a matrix product in which each patch is one row.
#[derive(Debug)]
pub struct CpuPatchEmbedding {
    linear: PackedWeights,
    class_embedding: Vec<f32>,
    /// Position embeddings of all tokens, `[tokens, width]`.
    positions: Vec<f32>,
    /// For each channel, the normalised value of every 8-bit value.
    normalised: [[f32; 256]; 3],
    patch: usize,
}

impl CpuOps {
    /// Implements [`Ops::load_patch_embedding`].
    pub(super) fn load_patches(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<CpuPatchEmbedding, BackendError> {
        let (_, _, patch, _) = weights.weight.dims4()?;
        Ok(CpuPatchEmbedding {
            linear: self.pack(&weights.weight, Some(&weights.bias), self.attention_format())?,
            class_embedding: values(&weights.class_embedding)?,
            positions: values(&weights.position_embedding)?,
            normalised: weights.normalised(),
            patch,
        })
    }

    /// Implements [`Ops::patch_embedding`].
    pub(super) fn embed_patches(
        &self,
        weights: &CpuPatchEmbedding,
        images: &[&Pixels],
    ) -> Result<CpuActivations, BackendError> {
        let width = weights.linear.n();
        let tokens = weights.positions.len() / width;
        let patches = self.patches(weights, images);
        let patches = CpuActivations::from_arena(
            &self.arena,
            patches.len() / weights.linear.k(),
            weights.linear.k(),
            patches,
        );
        let embedded = self.linear(&patches, &weights.linear, Epilogue::None)?;
        Ok(self.act(images.len() * tokens, width, |_, out| {
            let images = embedded.values().chunks_exact((tokens - 1) * width);
            for (out, patches) in out.chunks_exact_mut(tokens * width).zip(images) {
                let values = weights.class_embedding.iter().chain(patches);
                for ((out, value), position) in out.iter_mut().zip(values).zip(&weights.positions) {
                    *out = value + position;
                }
            }
        }))
    }

    /// Returns the normalised patches, `[images x patches, 3 x patch x patch]`. The outermost dimension of a patch is
    /// the channel, as in the convolution's kernel.
    fn patches(&self, weights: &CpuPatchEmbedding, images: &[&Pixels]) -> Vec<f32> {
        let patch = weights.patch;
        let line_values = |image: &Pixels| image.width() as usize / patch * weights.linear.k();
        let lines: Vec<(&Pixels, usize)> = images
            .iter()
            .flat_map(|&image| (0..image.height() as usize / patch).map(move |line| (image, line)))
            .collect();
        let total = lines.iter().map(|(image, _)| line_values(image)).sum();
        let mut values = self.arena.take(total);
        // All images of one tower have the same size.
        let each = lines.first().map_or(1, |(image, _)| line_values(image));
        let places: Vec<Mutex<&mut [f32]>> = values.chunks_mut(each).map(Mutex::new).collect();
        self.workspace().context.pool().run(lines.len(), &|index| {
            let (image, line) = lines[index];
            let mut place = places[index].lock().unwrap_or_else(PoisonError::into_inner);
            patch_line(weights, image, line, &mut place);
        });
        drop(places);
        values
    }
}

/// Writes one line of normalised patches of the image to `to`.
fn patch_line(weights: &CpuPatchEmbedding, image: &Pixels, line: usize, to: &mut [f32]) {
    let patch = weights.patch;
    let width = image.width() as usize;
    for (column, to) in to.chunks_exact_mut(weights.linear.k()).enumerate() {
        for ((channel, table), to) in
            weights.normalised.iter().enumerate().zip(to.chunks_exact_mut(patch * patch))
        {
            for (y, to) in to.chunks_exact_mut(patch).enumerate() {
                let start = ((line * patch + y) * width + column * patch) * 3;
                let pixels = image.as_bytes()[start..start + patch * 3].chunks_exact(3);
                for (to, rgb) in to.iter_mut().zip(pixels) {
                    *to = table[usize::from(rgb[channel])];
                }
            }
        }
    }
}
