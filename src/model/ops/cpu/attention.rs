//! Attention on packed keys and values, and the forms in which the operations store keys and values.

use std::sync::Arc;

use super::{AbsorbedKv, AbsorbedKvWeights, CausalRows, CpuActivations, CpuOps, Workspace};
use crate::engine::backend::BackendError;
use crate::kernels::attention::{self, AttentionRun, CausalRun, Heads, PackedKv};
use crate::kernels::gemm::PackedWeights;
use crate::kernels::rows::Rows;
use crate::model::ops::{Epilogue, Ops, RowRun};

/// Maximum number of packed sequences whose buffers are kept for the next self-attention. Each sequence takes at most
/// 3 MB (512 tokens in f32).
const MOST_MEMORIES: usize = 8;

/// Weights of one layer's projection to cross-attention keys and values.
#[derive(Debug)]
pub enum CpuKvProjection {
    /// A linear layer that computes the keys and values.
    Projected(PackedWeights),
    /// Projections that are folded into the queries and the results; see [`AbsorbedKv`].
    Folded(Arc<AbsorbedKvWeights>),
}

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone)]
pub enum CpuKvCache {
    /// Keys and values of encoder states, packed once and read by many queries.
    PackedKv(Arc<PackedKv>),
    /// Image features that are used in place of keys and values. The keys and values are never computed.
    Folded(AbsorbedKv),
    /// Self-attention KV cache of text that is being generated.
    Causal(Arc<CausalRows>),
}

impl CpuOps {
    /// Implements [`Ops::self_attention`].
    pub(super) fn attend_bidirectionally(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
    ) -> CpuActivations {
        let width = qkv.width() / 3;
        let heads = Heads { count: heads, width: width / heads };
        self.act(qkv.rows(), width, |Workspace { context, memories }, out| {
            let missing = lengths.len().saturating_sub(memories.len());
            memories.extend(std::iter::repeat_with(PackedKv::default).take(missing));
            for ((memory, start), &rows) in memories.iter_mut().zip(starts(lengths)).zip(lengths) {
                memory.pack(
                    context,
                    self.self_attention_format(rows),
                    heads,
                    columns(qkv, 1, 3, start, rows),
                    columns(qkv, 2, 3, start, rows),
                );
            }
            let runs: Vec<_> = memories
                .iter()
                .zip(starts(lengths))
                .zip(lengths)
                .map(|((memory, start), &rows)| AttentionRun {
                    queries: columns(qkv, 0, 3, start, rows),
                    memory,
                    scale: heads.scale(),
                })
                .collect();
            attention::attend(context, &runs, out);
            memories.truncate(MOST_MEMORIES);
        })
    }

    /// Implements [`Ops::cached_attention`].
    pub(super) fn attend_causally(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&CpuKvCache>],
    ) -> Result<(CpuActivations, Vec<CpuKvCache>), BackendError> {
        let width = qkv.width() / 3;
        let heads = Heads { count: heads, width: width / heads };
        let mut extended = Vec::with_capacity(lengths.len());
        for ((start, &rows), cache) in starts(lengths).zip(lengths).zip(caches) {
            let past = match cache {
                Some(CpuKvCache::Causal(past)) => Some(&**past),
                Some(CpuKvCache::PackedKv(_) | CpuKvCache::Folded(_)) => return Err(wrong_form()),
                None => None,
            };
            extended.push(Arc::new(CausalRows::extend(past, qkv, start, rows)));
        }
        let pieces: Vec<_> = extended.iter().map(|cache| cache.pieces()).collect();
        let runs: Vec<_> = starts(lengths)
            .zip(lengths)
            .zip(&pieces)
            .map(|((start, &rows), memory)| CausalRun {
                queries: columns(qkv, 0, 3, start, rows),
                memory,
            })
            .collect();
        let out = self.act(qkv.rows(), width, |workspace, out| {
            attention::attend_causally(&mut workspace.context, heads, &runs, out);
        });
        Ok((out, extended.into_iter().map(CpuKvCache::Causal).collect()))
    }

    /// Implements [`Ops::keys_values`].
    pub(super) fn project_keys_values(
        &self,
        memory: &CpuActivations,
        weights: &CpuKvProjection,
        heads: usize,
    ) -> Result<CpuKvCache, BackendError> {
        let weights = match weights {
            CpuKvProjection::Projected(weights) => weights,
            CpuKvProjection::Folded(weights) => return Ok(self.folded(memory, weights)),
        };
        let projected = self.linear(memory, weights, Epilogue::None)?;
        let rows = projected.rows();
        let heads = Heads { count: heads, width: projected.width() / 2 / heads };
        let mut packed = PackedKv::default();
        let format = self.attention_format();
        let (keys, values) =
            (columns(&projected, 0, 2, 0, rows), columns(&projected, 1, 2, 0, rows));
        packed.pack(&mut self.workspace().context, format, heads, keys, values);
        Ok(CpuKvCache::PackedKv(Arc::new(packed)))
    }

    /// Implements [`Ops::cross_attention`].
    pub(super) fn attend_across(
        &self,
        query: &CpuActivations,
        runs: &[RowRun<&CpuKvCache>],
    ) -> Result<CpuActivations, BackendError> {
        if let Some(CpuKvCache::Folded(first)) = runs.first().map(|run| run.memory) {
            return self.folded_attention(query, first.weights(), runs);
        }
        let lengths: Vec<usize> = runs.iter().map(|run| run.rows).collect();
        let runs = runs
            .iter()
            .zip(starts(&lengths))
            .map(|(run, start)| match run.memory {
                CpuKvCache::PackedKv(memory) => Ok(AttentionRun {
                    queries: columns(query, 0, 1, start, run.rows),
                    memory,
                    scale: memory.heads().scale(),
                }),
                CpuKvCache::Causal(_) | CpuKvCache::Folded(_) => Err(wrong_form()),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.act(query.rows(), query.width(), |workspace, out| {
            attention::attend(&mut workspace.context, &runs, out);
        }))
    }
}

/// Splits the columns of `x` into `parts` equal parts, and returns part `index` of the rows `start..start + rows`.
fn columns(x: &CpuActivations, index: usize, parts: usize, start: usize, rows: usize) -> Rows<'_> {
    let stride = x.width();
    Rows { values: &x.values()[start * stride..], stride, column: index * stride / parts, rows }
}

/// Returns the index of the first row of each sequence, given the lengths of all sequences.
pub(super) fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
}

/// Returns the error for keys and values in a form that the operation does not accept. It occurs only if the server has
/// a bug.
pub(super) fn wrong_form() -> BackendError {
    BackendError::Device("keys and values of the wrong form".to_owned())
}
