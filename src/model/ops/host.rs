//! Results of the operations on the host: whole rows, or the best tokens of rows of logits.

use std::borrow::Cow;

use crate::task::TokenLogprob;

/// The largest logits of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct BestTokens {
    /// Index and logit, the largest logit first, the lower index first among equals.
    best: Vec<(u32, f32)>,
    /// `ln(sum(exp(x)))` over all logits of the row.
    normalizer: f32,
}

impl BestTokens {
    /// Returns the best tokens of a row: `best` holds indices and logits, largest first.
    #[must_use]
    pub fn new(best: Vec<(u32, f32)>, normalizer: f32) -> Self {
        Self { best, normalizer }
    }

    /// Returns the number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.best.len()
    }

    /// True if there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.best.is_empty()
    }

    /// Returns the token of this rank, from 0, with its log-probability.
    #[must_use]
    pub fn token(&self, rank: usize) -> TokenLogprob {
        let (id, logit) = self.best[rank];
        TokenLogprob { id, logprob: logit - self.normalizer }
    }
}

/// Rows of f32 on the host, borrowed from activations or copied from a device.
#[derive(Debug, Clone)]
pub struct HostRows<'a> {
    values: Cow<'a, [f32]>,
    width: usize,
}

impl<'a> HostRows<'a> {
    /// Makes rows of `width` values each from `values`, which hold a whole number of rows.
    #[must_use]
    pub fn new(values: impl Into<Cow<'a, [f32]>>, width: usize) -> Self {
        Self { values: values.into(), width }
    }

    /// Returns the same rows, copied if they are borrowed.
    #[must_use]
    pub fn into_owned(self) -> HostRows<'static> {
        HostRows { values: Cow::Owned(self.values.into_owned()), width: self.width }
    }

    /// Returns the rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }
}
