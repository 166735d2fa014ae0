//! Cross-attention weights for explanations. Attention itself computes its weights in pieces and never stores them, so
//! they are computed here again from the same queries and keys, in the same number format.

use super::attention::CpuKvProjection;
use super::{CpuActivations, CpuOps, Workspace};
use crate::engine::backend::BackendError;
use crate::kernels::attention::Heads;
use crate::kernels::gemm::{self, PackedWeights};
use crate::model::ops::{Epilogue, Ops};

impl CpuOps {
    /// Implements [`Ops::attention_weights`].
    pub(super) fn weights_across(
        &self,
        query: &CpuActivations,
        heads: usize,
        memory: &CpuActivations,
        weights: &CpuKvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let (rows, tokens) = (query.rows(), memory.rows());
        let scale = Heads { count: heads, width: query.width() / heads }.scale();
        let scores = match weights {
            CpuKvProjection::Projected(weights) => {
                let projected = self.linear(memory, weights, Epilogue::None)?;
                let width = query.width() / heads;
                let keys =
                    (0..heads).map(|head| self.packed_columns(&projected, head * width, width));
                let keys: Vec<PackedWeights> = keys.collect();
                self.act(rows, heads * tokens, |Workspace { context, .. }, out| {
                    gemm::linear_by_head(context, query.values(), &keys, out);
                })
            }
            CpuKvProjection::Folded(weights) => {
                let width = memory.width();
                let queries = self.act(rows, heads * width, |Workspace { context, .. }, out| {
                    gemm::linear_by_head(context, query.values(), weights.keys(), out);
                });
                // Every head attends to the same features.
                let features = self.packed_columns(memory, 0, width);
                self.act(rows, heads * tokens, |Workspace { context, .. }, out| {
                    gemm::linear(context, queries.values(), &features, gemm::Epilogue::None, out);
                })
            }
        };
        let each = (0..rows).map(|row| mean_softmax(scores.row(row), heads, scale));
        Ok(each.collect())
    }

    /// Packs `width` columns of `x` from `first` on, so that a product with them compares queries with the rows of `x`.
    fn packed_columns(&self, x: &CpuActivations, first: usize, width: usize) -> PackedWeights {
        let values: Vec<f32> = (0..x.rows())
            .flat_map(|row| x.row(row)[first..first + width].iter().copied())
            .collect();
        let format = self.attention_format();
        PackedWeights::pack(&mut self.workspace().context, format, &values, None, x.rows())
    }
}

/// Returns the mean over the heads of `softmax(scale x scores)`, computed in f64. `scores` is `[heads, tokens]`.
fn mean_softmax(scores: &[f32], heads: usize, scale: f32) -> Vec<f32> {
    let tokens = scores.len() / heads;
    let mut mean = vec![0f64; tokens];
    for scores in scores.chunks_exact(tokens) {
        let most = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let weight = |&score: &f32| ((f64::from(score) - most) * f64::from(scale)).exp();
        let total: f64 = scores.iter().map(weight).sum();
        for (mean, score) in mean.iter_mut().zip(scores) {
            *mean += weight(score) / total / heads as f64;
        }
    }
    mean.into_iter().map(|weight| weight as f32).collect()
}
