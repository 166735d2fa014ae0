//! Attention on candle's tensors, and the type that stores keys and values.

use candle_core::{DType, IndexOp as _, Tensor};

use super::{CandleLinear, CandleOps};
use crate::engine::backend::BackendError;
use crate::model::ops::{Epilogue, Ops, RowRun};

/// Keys and values, each `[heads, tokens, head width]`.
#[derive(Debug, Clone)]
pub struct CandleKvCache {
    keys: Tensor,
    values: Tensor,
}

impl CandleOps {
    /// Implements [`Ops::self_attention`].
    pub(super) fn attend_bidirectionally(
        &self,
        qkv: &Tensor,
        heads: usize,
        lengths: &[usize],
    ) -> Result<Tensor, BackendError> {
        let mut outputs = Vec::with_capacity(lengths.len());
        for sequence in views(qkv, lengths)? {
            let q = heads_of(&sequence, 0, 3, heads)?;
            let keys = heads_of(&sequence, 1, 3, heads)?;
            let values = heads_of(&sequence, 2, 3, heads)?;
            outputs.push(self.attend(&q, &CandleKvCache { keys, values }, None)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Implements [`Ops::cached_attention`].
    pub(super) fn attend_causally(
        &self,
        qkv: &Tensor,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&CandleKvCache>],
    ) -> Result<(Tensor, Vec<CandleKvCache>), BackendError> {
        let mut outputs = Vec::with_capacity(lengths.len());
        let mut extended = Vec::with_capacity(lengths.len());
        for (sequence, cache) in views(qkv, lengths)?.iter().zip(caches) {
            let q = heads_of(sequence, 0, 3, heads)?;
            let keys = heads_of(sequence, 1, 3, heads)?;
            let values = heads_of(sequence, 2, 3, heads)?;
            let (past, kv) = match cache {
                Some(cache) => {
                    let keys = Tensor::cat(&[&cache.keys, &keys], 1)?;
                    let values = Tensor::cat(&[&cache.values, &values], 1)?;
                    (cache.keys.dim(1)?, CandleKvCache { keys, values })
                }
                None => (0, CandleKvCache { keys, values }),
            };
            let rows = q.dim(1)?;
            let mask = if rows > 1 { Some(self.causal_mask(past, rows)?) } else { None };
            outputs.push(self.attend(&q, &kv, mask.as_ref())?);
            extended.push(kv);
        }
        Ok((Tensor::cat(&outputs, 0)?, extended))
    }

    /// Implements [`Ops::keys_values`].
    pub(super) fn project_keys_values(
        &self,
        memory: &Tensor,
        weights: &CandleLinear,
        heads: usize,
    ) -> Result<CandleKvCache, BackendError> {
        let projected = self.linear(memory, weights, Epilogue::None)?;
        let keys = heads_of(&projected, 0, 2, heads)?;
        let values = heads_of(&projected, 1, 2, heads)?;
        Ok(CandleKvCache { keys, values })
    }

    /// Implements [`Ops::cross_attention`].
    pub(super) fn attend_across(
        &self,
        query: &Tensor,
        heads: usize,
        runs: &[RowRun<&CandleKvCache>],
    ) -> Result<Tensor, BackendError> {
        let lengths: Vec<usize> = runs.iter().map(|run| run.rows).collect();
        let mut outputs = Vec::with_capacity(runs.len());
        for (rows, run) in views(query, &lengths)?.iter().zip(runs) {
            outputs.push(self.attend(&heads_of(rows, 0, 1, heads)?, run.memory, None)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Implements [`Ops::attention_weights`].
    pub(super) fn weights_across(
        &self,
        query: &Tensor,
        heads: usize,
        memory: &Tensor,
        weights: &CandleLinear,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let keys = self.project_keys_values(memory, weights, heads)?.keys;
        // Each row is computed alone, so that its bits do not depend on the others.
        let mut rows = Vec::with_capacity(query.dim(0)?);
        for row in 0..query.dim(0)? {
            let q = heads_of(&query.narrow(0, row, 1)?, 0, 1, heads)?;
            let q = Tensor::cat(&[&q, &q], 1)?;
            let scale = 1.0 / (q.dim(2)? as f64).sqrt();
            let scores = q.affine(scale, 0.0)?.matmul(&keys.t()?)?.to_dtype(DType::F32)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.mean(0)?;
            rows.push(weights.i(0)?.to_vec1::<f32>()?);
        }
        Ok(rows)
    }

    /// Computes `softmax(q k^T / sqrt(head width) + mask) v`. The softmax is computed in f32 for every dtype. `q` is
    /// `[heads, rows, d]`, `k` and `v` are `[heads, tokens, d]`, `mask` is `[rows, tokens]`; the result is
    /// `[rows, heads x d]`.
    fn attend(
        &self,
        q: &Tensor,
        kv: &CandleKvCache,
        mask: Option<&Tensor>,
    ) -> Result<Tensor, BackendError> {
        let (heads, rows, head_width) = q.dims3()?;
        // A single row is computed together with a copy of itself, as in `product`.
        let q = &if rows == 1 { Tensor::cat(&[q, q], 1)? } else { q.clone() };
        let scale = 1.0 / (head_width as f64).sqrt();
        let scores = q.affine(scale, 0.0)?.matmul(&kv.keys.t()?)?.to_dtype(DType::F32)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let probabilities = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(self.dtype)?;
        let context = probabilities.matmul(&kv.values)?.narrow(1, 0, rows)?;
        Ok(context.transpose(0, 1)?.contiguous()?.reshape((rows, heads * head_width))?)
    }

    /// Returns a mask `[rows, past + rows]`: 0 where row i (at position `past + i`) may attend to token j, minus
    /// infinity elsewhere.
    fn causal_mask(&self, past: usize, rows: usize) -> Result<Tensor, BackendError> {
        let visible = |i: usize, j: usize| if j <= past + i { 0.0 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> =
            (0..rows).flat_map(|i| (0..past + rows).map(move |j| visible(i, j))).collect();
        Ok(Tensor::from_vec(mask, (rows, past + rows), &self.device)?)
    }
}

/// Splits the columns of `x` `[rows, parts x width]` into `parts` equal parts, and returns part `index` as
/// `[heads, rows, head width]`.
fn heads_of(x: &Tensor, index: usize, parts: usize, heads: usize) -> Result<Tensor, BackendError> {
    let (rows, columns) = x.dims2()?;
    let width = columns / parts;
    let part = x.narrow(1, index * width, width)?;
    Ok(part.reshape((rows, heads, width / heads))?.transpose(0, 1)?.contiguous()?)
}

/// Returns consecutive slices of the rows of `x`, one per length. All slices share the storage of `x`.
pub(super) fn views(x: &Tensor, lengths: &[usize]) -> Result<Vec<Tensor>, BackendError> {
    let mut start = 0;
    let mut views = Vec::with_capacity(lengths.len());
    for &length in lengths {
        views.push(x.i(start..start + length)?);
        start += length;
    }
    Ok(views)
}
