//! Memories that text towers attend to, and groups: sequences being decoded, with their caches and search.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ops::Ops;
use super::search::Search;
use crate::engine::backend::BackendError;
use crate::task::ModelId;

/// Keys and values of one memory, for every layer of one decoder.
pub(super) type CrossKeysValues<O> = Vec<<O as Ops>::KeysValues>;

/// An image's features or a question's states. Clones share, the decoder's keys and values of it too.
#[derive(Debug)]
pub struct Memory<O: Ops>(Arc<MemoryInner<O>>);

struct MemoryInner<O: Ops> {
    /// `[tokens, width]`.
    states: O::Act,
    /// Built when the first decoding group steps, freed with the last: the groups hold them, this only finds them.
    cross: Mutex<Vec<(ModelId, Weak<CrossKeysValues<O>>)>>,
}

impl<O: Ops> Clone for Memory<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O: Ops> std::fmt::Debug for MemoryInner<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryInner")
    }
}

impl<O: Ops> Memory<O> {
    pub(super) fn new(states: O::Act) -> Self {
        Self(Arc::new(MemoryInner { states, cross: Mutex::default() }))
    }

    /// `[tokens, width]`.
    pub(super) fn states(&self) -> &O::Act {
        &self.0.states
    }

    /// True for clones of one memory.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The keys and values of `model`'s decoder: those that living groups hold, or newly built ones.
    pub(super) fn cross_keys_values(
        &self,
        model: ModelId,
        build: impl FnOnce(&O::Act) -> Result<CrossKeysValues<O>, BackendError>,
    ) -> Result<Arc<CrossKeysValues<O>>, BackendError> {
        let mut cross = self.0.cross.lock().unwrap_or_else(PoisonError::into_inner);
        cross.retain(|(_, held)| held.strong_count() > 0);
        let found = cross.iter().find(|(owner, _)| *owner == model);
        if let Some(shared) = found.and_then(|(_, held)| held.upgrade()) {
            return Ok(shared);
        }
        let built = Arc::new(build(&self.0.states)?);
        cross.push((model, Arc::downgrade(&built)));
        Ok(built)
    }
}

/// One sequence or beam set.
pub struct Group<O: Ops> {
    pub(super) memory: Memory<O>,
    /// From the first step on.
    pub(super) cross: Option<Arc<CrossKeysValues<O>>>,
    /// Start token and prompt.
    pub(super) start: Vec<u32>,
    /// Live rows; none before the first step.
    pub(super) rows: Vec<Row<O>>,
    pub(super) search: Search,
}

/// One live row: a sequence's cache.
pub(super) struct Row<O: Ops> {
    /// One per layer.
    pub(super) caches: Vec<O::KeysValues>,
    /// Tokens in the caches; the next token's position.
    pub(super) length: usize,
}

impl<O: Ops> Clone for Row<O> {
    fn clone(&self) -> Self {
        Self { caches: self.caches.clone(), length: self.length }
    }
}

impl<O: Ops> std::fmt::Debug for Group<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({} rows, start {:?})", self.rows.len(), self.start)
    }
}

/// Inputs of one group's next step, one entry a row: its new tokens, the position of the first, its caches.
pub(super) struct StepInput<'a, O: Ops> {
    pub(super) tokens: Vec<u32>,
    pub(super) position: usize,
    pub(super) caches: Option<&'a [O::KeysValues]>,
}

impl<O: Ops> Group<O> {
    /// What the next step runs: the start tokens in one row at first, then each live row's last token.
    pub(super) fn inputs(&self) -> Vec<StepInput<'_, O>> {
        if self.rows.is_empty() {
            return vec![StepInput { tokens: self.start.clone(), position: 0, caches: None }];
        }
        let tokens = self.search.next_tokens();
        let inputs = self.rows.iter().zip(tokens).map(|(row, token)| StepInput {
            tokens: vec![token],
            position: row.length,
            caches: Some(&row.caches),
        });
        inputs.collect()
    }
}
