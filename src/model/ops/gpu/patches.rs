//! The patch embedding: a product of normalised patches, with the class token and the position embeddings.

use super::linear::{Output, Sums};
use super::{GpuActivations, GpuLinear, GpuOps};
use crate::engine::backend::BackendError;
use crate::gpu::heap::Buffer;
use crate::gpu::kernels::rows::{self, EmbedPatches, Patchify};
use crate::model::ops::{Ops, PatchEmbeddingWeights};
use crate::task::Pixels;

/// Weights of the patch embedding.
#[derive(Debug)]
pub struct GpuPatchEmbedding {
    /// The convolution's kernel, `[width, 3 x patch x patch]`, with its bias.
    linear: GpuLinear,
    /// `[width]`, f32.
    class: Buffer,
    /// `[tokens, width]`, f32.
    positions: Buffer,
    tokens: usize,
    /// For each channel, the normalised value of every 8-bit value, `[3, 256]`, f32.
    normalised: Buffer,
    patch: usize,
}

impl GpuOps {
    pub(super) fn load_patches(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<GpuPatchEmbedding, BackendError> {
        let (width, channels, patch, _) = weights.weight.dims4()?;
        let kernel = weights.weight.reshape((width, channels * patch * patch))?;
        let table = weights.normalised();
        let table: Vec<u8> = table.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        Ok(GpuPatchEmbedding {
            linear: self.load_linear(&kernel, Some(&weights.bias))?,
            class: self.place_wide(&weights.class_embedding)?,
            positions: self.place_wide(&weights.position_embedding)?,
            tokens: weights.position_embedding.dim(1)?,
            normalised: self.place_bytes(&table)?,
            patch,
        })
    }

    pub(super) fn embed_patches(
        &self,
        weights: &GpuPatchEmbedding,
        images: &[&Pixels],
    ) -> Result<GpuActivations, BackendError> {
        let GpuPatchEmbedding { linear, tokens, patch, .. } = weights;
        let (tokens, patch, width) = (*tokens, *patch, linear.n);
        let size = images.first().map_or((0, 0), |image| (image.height(), image.width()));
        let patches = (size.0 as usize / patch) * (size.1 as usize / patch);
        if images.iter().any(|image| (image.height(), image.width()) != size)
            || (!images.is_empty() && patches + 1 != tokens)
        {
            // The kernels would read beside the pixels, after which a GPU may be unusable.
            return Err(BackendError::Device("images of another size than the tower's".to_owned()));
        }
        let bytes: Vec<u8> = images.iter().flat_map(|image| image.as_bytes()).copied().collect();
        let pixels = self.place(bytes)?;
        let rows = images.len() * (tokens - 1);
        let patches = self.narrow_buffer(rows * linear.k)?;
        rows::patchify(
            self.device(),
            self.format,
            Patchify {
                pixels: pixels.address(),
                table: weights.normalised.address(),
                out: patches.address(),
                images: images.len(),
                height: size.0 as usize,
                width: size.1 as usize,
                patch,
            },
        )?;
        let embedded = self.wide_buffer(rows * width)?;
        let into = Output::wide(embedded.address());
        self.product(patches.address(), rows, linear, into, Sums::Fastest)?;
        let out = self.wide_buffer(images.len() * tokens * width)?;
        rows::embed_patches(
            self.device(),
            EmbedPatches {
                patches: embedded.address(),
                class: weights.class.address(),
                positions: weights.positions.address(),
                out: out.address(),
                images: images.len(),
                tokens,
                width,
            },
        )?;
        Ok(self.wide_act(images.len() * tokens, width, out))
    }
}
