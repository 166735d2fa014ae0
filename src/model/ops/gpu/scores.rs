//! The best tokens of logits, found on the device.

use super::{GpuActivations, GpuOps};
use crate::engine::backend::BackendError;
use crate::gpu::kernels::scores;
use crate::model::ops::BestTokens;

/// Number of values that [`scores::greedy`] writes per row.
const GREEDY_VALUES: usize = 4;

impl GpuOps {
    /// Returns the `count` largest logits of each row.
    pub(super) fn find_best(
        &self,
        logits: &GpuActivations,
        count: usize,
    ) -> Result<Vec<BestTokens>, BackendError> {
        let (rows, n) = (logits.rows(), logits.width());
        let values = self.wide(logits)?;
        let greedy = self.wide_buffer(rows * GREEDY_VALUES)?;
        scores::greedy(self.device(), [values.address(), greedy.address()], rows, n)?;
        // The kernels of a row of few logits return -1 for the ranks beyond the last one.
        let count = count.min(n);
        let largest = self.wide_buffer(rows * count)?;
        let indices = self.wide_buffer(rows * count)?;
        if count > 1 {
            let pointers = [values.address(), largest.address(), indices.address()];
            scores::top_k(self.device(), pointers, rows, n, count)?;
        }
        let greedy = self.fetch(greedy.address(), rows * GREEDY_VALUES)?;
        let (largest, indices) = if count > 1 {
            let largest = self.fetch(largest.address(), rows * count)?;
            (largest, self.fetch(indices.address(), rows * count)?)
        } else {
            (Vec::new(), Vec::new())
        };
        let (summaries, _) = greedy.as_chunks::<GREEDY_VALUES>();
        let mut best = Vec::with_capacity(rows);
        for (row, &[value, index, normalizer, _]) in summaries.iter().enumerate() {
            let index = u32::try_from(index.to_bits().cast_signed())
                .map_err(|_| BackendError::NonFinite("logits"))?;
            let tokens = if count > 1 {
                let row = row * count..(row + 1) * count;
                let indices = indices[row.clone()].iter().map(|index| index.to_bits());
                indices.zip(largest[row].iter().copied()).collect()
            } else {
                vec![(index, value)]
            };
            best.push(BestTokens::new(tokens, normalizer));
        }
        Ok(best)
    }
}
