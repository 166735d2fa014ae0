//! Cross-attention over an image without its keys and values.
//!
//! A score is `q (W_k f + b_k) = (q W_k) f + q b_k`, and `q b_k` is the same for every token, so that softmax drops it; a
//! result is `sum p (W_v f + b_v) = W_v (sum p f) + b_v`, as the probabilities sum to one. So attention runs over the
//! features `f` themselves, for every layer the same: 1.8 MB an image instead of 21 MB (base, bf16), and the 16 GFLOP that
//! compute them are not spent. What it costs is a wider attention: 577 x 768 values a head instead of 577 x 64.
//! It pays below one head's width of query rows an image (64, for base): captions have 20, beams of three 60.
//!
//! It is chosen by what the tower is for, never by how many rows there are: a row has the same bits in any company.

use std::sync::Arc;

use super::{Act, CpuOps, KeysValues, wrong_form};
use crate::engine::backend::BackendError;
use crate::kernels::attention::{self, Heads, Memory};
use crate::kernels::gemm::{self, Format, Weights};
use crate::kernels::isa::Level;
use crate::kernels::pool::Pool;
use crate::kernels::rows::Rows;
use crate::model::ops::Run;

/// One layer's weights, head by head.
#[derive(Debug)]
pub struct FoldedWeights {
    /// `W_k` transposed: `[memory width, head width]` each.
    keys: Vec<Weights>,
    /// `W_v` and its bias: `[head width, memory width]` each.
    values: Vec<Weights>,
}

/// An image's features as one layer attends to them.
#[derive(Debug, Clone)]
pub struct FoldedMemory {
    features: Arc<Memory>,
    weights: Arc<FoldedWeights>,
}

impl FoldedMemory {
    pub(super) fn weights(&self) -> &FoldedWeights {
        &self.weights
    }
}

impl FoldedWeights {
    /// `weight` `[2 x width, memory width]` and `bias` `[2 x width]`, keys first.
    pub(super) fn pack(
        level: Level,
        pool: &mut Pool,
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
            Weights::pack(level, pool, format, &transposed, None, memory_width)
        });
        let keys = keys.collect();
        let values = values
            .chunks_exact(head_width * memory_width)
            .zip(bias[width..].chunks_exact(head_width))
            .map(|(head, bias)| Weights::pack(level, pool, format, head, Some(bias), head_width))
            .collect();
        Self { keys, values }
    }
}

impl CpuOps {
    /// What stands for the keys and values of `memory`.
    pub(super) fn folded(&self, memory: &Act, weights: &Arc<FoldedWeights>) -> KeysValues {
        let features = memory.packed(|| {
            let heads = Heads { count: 1, width: memory.width() };
            let rows = Rows::of(memory.values(), memory.width());
            let mut packed = Memory::new(self.level, self.careful_format(), heads);
            packed.pack(&mut self.state().pool, heads, rows, rows);
            packed
        });
        KeysValues::Folded(FoldedMemory { features, weights: Arc::clone(weights) })
    }

    /// `query` is `[rows, width]`, as the result; all memories are of one layer.
    pub(super) fn folded_attention(
        &self,
        query: &Act,
        weights: &FoldedWeights,
        runs: &[Run<&KeysValues>],
    ) -> Result<Act, BackendError> {
        let width = query.width();
        let mut out = self.arena.take(query.rows() * width);
        let mut start = 0;
        for slice in slices(runs)? {
            let rows: usize = slice.iter().map(|run| run.rows).sum();
            let place = start * width..(start + rows) * width;
            self.folded_slice(&query.values()[place.clone()], weights, &slice, &mut out[place]);
            start += rows;
        }
        Ok(Act::from_arena(&self.arena, query.rows(), width, out))
    }

    fn folded_slice(
        &self,
        query: &[f32],
        weights: &FoldedWeights,
        runs: &[Run<&FoldedMemory>],
        out: &mut [f32],
    ) {
        let (heads, level) = (weights.keys.len(), self.level);
        let rows: usize = runs.iter().map(|run| run.rows).sum();
        let scale = Heads { count: heads, width: query.len() / rows / heads }.scale();
        let memory_width = weights.keys.first().map_or(0, Weights::n);
        let wide = heads * memory_width;
        // Every head of a row is a query of its own over the features.
        let queries = self.act(rows, wide, |state, out| {
            gemm::linear_by_head(level, &mut state.pool, query, &weights.keys, out);
        });
        let mut start = 0;
        let runs: Vec<_> = runs
            .iter()
            .map(|run| {
                let values = &queries.values()[start * wide..(start + run.rows) * wide];
                start += run.rows;
                let queries = Rows::of(values, memory_width);
                attention::Run { queries, memory: &run.memory.features, scale }
            })
            .collect();
        let sums = self.act(rows, wide, |state, out| {
            attention::attend(level, &mut state.pool, &runs, out);
        });
        let pool = &mut self.state().pool;
        gemm::linear_by_head(level, pool, sums.values(), &weights.values, out);
    }
}

/// Rows whose queries over features are there at one time: 256 x 12 heads x 768 x 4 B = 9 MB, and as much for results.
const SLICE_ROWS: usize = 256;

/// The runs in slices of at most that many rows, cut where they have to be. A row's bits do not depend on it.
fn slices<'a>(
    runs: &[Run<&'a KeysValues>],
) -> Result<Vec<Vec<Run<&'a FoldedMemory>>>, BackendError> {
    let mut slices: Vec<Vec<Run<&FoldedMemory>>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let KeysValues::Folded(memory) = run.memory else { return Err(wrong_form()) };
        let mut left = run.rows;
        while left > 0 {
            if room == 0 {
                slices.push(Vec::new());
                room = SLICE_ROWS;
            }
            let rows = left.min(room);
            if let Some(slice) = slices.last_mut() {
                slice.push(Run { memory, rows });
            }
            (left, room) = (left - rows, room - rows);
        }
    }
    Ok(slices)
}
