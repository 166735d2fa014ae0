//! Texts as the models see them.

use std::sync::Arc;

/// Token ids as the tokenizer wrote them, `[CLS] ... [SEP]` included. Clones share the ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenIds(Arc<[u32]>);

impl TokenIds {
    /// Wraps ids that already carry `[CLS]` and `[SEP]`.
    #[must_use]
    pub fn new(ids: impl Into<Arc<[u32]>>) -> Self {
        Self(ids.into())
    }

    /// The ids with `[CLS]` and `[SEP]`.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Number of ids, special ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is no id at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
