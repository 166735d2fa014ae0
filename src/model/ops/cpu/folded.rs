//! Cross-attention over image features, without computing keys and values. The key and value projections are folded
//! into the queries and the results, as in the weight absorption of multi-head latent attention.
//!
//! A score is `q (W_k f + b_k) = (q W_k) f + q b_k`. The term `q b_k` is the same for every token, so softmax cancels
//! it. A result is `sum p (W_v f + b_v) = W_v (sum p f) + b_v`, because the probabilities sum to one. So attention can
//! run over the features `f` themselves, which are the same for every layer.
//!
//! For a base-size model in bf16, the features take 0.9 MB per image (1.8 MB with a matrix unit, which needs two copies),
//! whereas keys and values would take 21 MB. The 16 GFLOP of the projections are saved. The price is a wider attention: 577 x 768 values per head instead of 577 x 64.
//! This form pays off while an image has fewer query rows than a head is wide (64 in a base-size model). Over all its
//! decode steps, a caption of 20 tokens has 20 query rows; with three beams, it has 60.
//!
//! Short texts that attend to an image in a single pass use this form too, if their request has no other text for the
//! image. Whether it is used depends only on the weights that are passed, and thereby on the request, never on the number
//! of rows in a batch. So the bits of a row's result do not depend on its batch neighbours.

use std::sync::Arc;

use super::attention::wrong_form;
use super::{CpuActivations, CpuKvCache, CpuOps};
use crate::engine::backend::BackendError;
use crate::kernels::attention::{self, AttentionRun, Heads, PackedKv};
use crate::kernels::context::KernelContext;
use crate::kernels::gemm::{self, Format, PackedWeights};
use crate::kernels::rows::Rows;
use crate::model::ops::RowRun;

/// Key and value projections of one layer, split by head for the folded form.
#[derive(Debug)]
pub struct AbsorbedKvWeights {
    /// `W_k` transposed, `[memory width, head width]` for each head.
    keys: Vec<PackedWeights>,
    /// `W_v` with its bias, `[head width, memory width]` for each head.
    values: Vec<PackedWeights>,
}

/// An image's features, with the folded weights of the layer that attends to them.
#[derive(Debug, Clone)]
pub struct AbsorbedKv {
    features: Arc<PackedKv>,
    weights: Arc<AbsorbedKvWeights>,
}

impl AbsorbedKv {
    pub(super) fn weights(&self) -> &AbsorbedKvWeights {
        &self.weights
    }
}

impl AbsorbedKvWeights {
    /// Returns `W_k` transposed, `[memory width, head width]` for each head.
    pub(super) fn keys(&self) -> &[PackedWeights] {
        &self.keys
    }

    /// Packs `weight` `[2 x width, memory width]` and `bias` `[2 x width]`; in both, the keys come first.
    pub(super) fn pack(
        context: &mut KernelContext,
        format: Format,
        weight: &[f32],
        bias: &[f32],
        heads: usize,
    ) -> Self {
        let width = bias.len() / 2;
        let (head_width, memory_width) = (width / heads, weight.len() / bias.len());
        let (keys, values) = weight.split_at(width * memory_width);
        let keys = keys.chunks_exact(head_width * memory_width).map(|head| {
            let transposed: Vec<f32> = (0..memory_width)
                .flat_map(|column| {
                    (0..head_width).map(move |row| head[row * memory_width + column])
                })
                .collect();
            PackedWeights::pack(context, format, &transposed, None, memory_width)
        });
        let keys = keys.collect();
        let values = values
            .chunks_exact(head_width * memory_width)
            .zip(bias[width..].chunks_exact(head_width))
            .map(|(head, bias)| PackedWeights::pack(context, format, head, Some(bias), head_width))
            .collect();
        Self { keys, values }
    }
}

impl CpuOps {
    /// Returns the folded form of the keys and values of `memory`.
    pub(super) fn folded(
        &self,
        memory: &CpuActivations,
        weights: &Arc<AbsorbedKvWeights>,
    ) -> CpuKvCache {
        let features = memory.packed(|| {
            let width = memory.width();
            let rows = Rows::of(memory.values(), width);
            let mut packed = PackedKv::default();
            let format = self.attention_format();
            packed.pack_shared(&mut self.workspace().context, format, rows, width);
            packed
        });
        CpuKvCache::Folded(AbsorbedKv { features, weights: Arc::clone(weights) })
    }

    /// Computes cross-attention in the folded form. `query` and the result are `[rows, width]`. All runs must belong to
    /// the same layer.
    pub(super) fn folded_attention(
        &self,
        query: &CpuActivations,
        weights: &AbsorbedKvWeights,
        runs: &[RowRun<&CpuKvCache>],
    ) -> Result<CpuActivations, BackendError> {
        let width = query.width();
        let mut out = self.arena.take(query.rows() * width);
        let mut start = 0;
        for slice in slices(runs)? {
            let rows: usize = slice.iter().map(|run| run.rows).sum();
            let place = start * width..(start + rows) * width;
            self.folded_slice(&query.values()[place.clone()], weights, &slice, &mut out[place]);
            start += rows;
        }
        Ok(CpuActivations::from_arena(&self.arena, query.rows(), width, out))
    }

    fn folded_slice(
        &self,
        query: &[f32],
        weights: &AbsorbedKvWeights,
        runs: &[RowRun<&AbsorbedKv>],
        out: &mut [f32],
    ) {
        let heads = weights.keys.len();
        let rows: usize = runs.iter().map(|run| run.rows).sum();
        let scale = Heads { count: heads, width: query.len() / rows / heads }.scale();
        let memory_width = weights.keys.first().map_or(0, PackedWeights::n);
        let wide = heads * memory_width;
        // Every head of a row is a separate query over the features.
        let queries = self.act(rows, wide, |workspace, out| {
            gemm::linear_by_head(&mut workspace.context, query, &weights.keys, out);
        });
        let mut start = 0;
        let runs: Vec<_> = runs
            .iter()
            .map(|run| {
                let values = &queries.values()[start * wide..(start + run.rows) * wide];
                start += run.rows;
                let queries = Rows::of(values, memory_width);
                AttentionRun { queries, memory: &run.memory.features, scale }
            })
            .collect();
        let sums = self.act(rows, wide, |workspace, out| {
            attention::attend(&mut workspace.context, &runs, out);
        });
        let context = &mut self.workspace().context;
        gemm::linear_by_head(context, sums.values(), &weights.values, out);
    }
}

/// Maximum number of rows that are processed at a time. Their queries over the features take 256 x 12 heads x 768 x 4 B
/// = 9 MB, and their results take the same amount again.
const SLICE_ROWS: usize = 256;

/// Splits the runs into slices of at most [`SLICE_ROWS`] rows. A run may be divided between slices, which does not
/// change the bits of a row's result.
fn slices<'a>(
    runs: &[RowRun<&'a CpuKvCache>],
) -> Result<Vec<Vec<RowRun<&'a AbsorbedKv>>>, BackendError> {
    let mut slices: Vec<Vec<RowRun<&AbsorbedKv>>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let CpuKvCache::Folded(memory) = run.memory else { return Err(wrong_form()) };
        let mut left = run.rows;
        while left > 0 {
            if room == 0 {
                slices.push(Vec::new());
                room = SLICE_ROWS;
            }
            let rows = left.min(room);
            if let Some(slice) = slices.last_mut() {
                slice.push(RowRun { memory, rows });
            }
            (left, room) = (left - rows, room - rows);
        }
    }
    Ok(slices)
}
