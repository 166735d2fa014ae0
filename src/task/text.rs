//! Tokenised texts in the form that the models need.

use std::sync::Arc;

/// Token ids from the tokenizer, `[CLS]` and `[SEP]` included. Clones share the ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenIds(Arc<[u32]>);

impl TokenIds {
    /// Wraps ids that already include `[CLS]` and `[SEP]`.
    #[must_use]
    pub fn new(ids: impl Into<Arc<[u32]>>) -> Self {
        Self(ids.into())
    }

    /// Returns the ids, including `[CLS]` and `[SEP]`.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Returns the number of ids, special tokens included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no ids, not even special ones.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
