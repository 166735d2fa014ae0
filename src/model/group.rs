//! Encoder states that text towers attend to, and groups: the sequences being decoded, with their KV caches and their
//! search.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ops::Ops;
use super::search::Search;
use crate::engine::backend::BackendError;
use crate::task::ModelId;

/// Cross-attention keys and values of one set of encoder states, for every layer of one decoder.
pub(super) type CrossKvCache<O> = Vec<<O as Ops>::KvCache>;

/// Encoder states: an image's features or an encoded question. Clones share the states, and also the decoder's
/// cross-attention keys and values computed from them.
#[derive(Debug)]
pub struct EncoderStates<O: Ops>(Arc<EncoderStatesInner<O>>);

struct EncoderStatesInner<O: Ops> {
    /// Hidden states, `[tokens, width]`, on the device.
    states: O::Act,
    /// Cross-attention keys and values per model. They are built when the first group decodes a step and freed with the
    /// last group. Only the groups own them; this list lets later groups find them.
    cross: Mutex<Vec<(ModelId, Weak<CrossKvCache<O>>)>>,
}

impl<O: Ops> Clone for EncoderStates<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O: Ops> std::fmt::Debug for EncoderStatesInner<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryInner")
    }
}

impl<O: Ops> EncoderStates<O> {
    pub(super) fn new(states: O::Act) -> Self {
        Self(Arc::new(EncoderStatesInner { states, cross: Mutex::default() }))
    }

    /// The hidden states, `[tokens, width]`, on the device.
    pub(super) fn states(&self) -> &O::Act {
        &self.0.states
    }

    /// True if both are clones of the same encoder states.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The cross-attention keys and values for `model`'s decoder. Reuses those of a live group if there is one;
    /// otherwise builds them.
    pub(super) fn cross_keys_values(
        &self,
        model: ModelId,
        build: impl FnOnce(&O::Act) -> Result<CrossKvCache<O>, BackendError>,
    ) -> Result<Arc<CrossKvCache<O>>, BackendError> {
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

/// One sequence or one set of beams that is being decoded.
pub struct Group<O: Ops> {
    pub(super) memory: EncoderStates<O>,
    /// Cross-attention keys and values, from the first step on.
    pub(super) cross: Option<Arc<CrossKvCache<O>>>,
    /// Start token and prompt tokens.
    pub(super) start: Vec<u32>,
    /// Live rows (one per beam); empty before the first step.
    pub(super) rows: Vec<Row<O>>,
    pub(super) search: Search,
}

/// KV cache of one live row, that is, of one sequence or beam.
pub(super) struct Row<O: Ops> {
    /// KV cache of each layer.
    pub(super) caches: Vec<O::KvCache>,
    /// Number of tokens in the caches, which is also the position of the next token.
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

/// Input of a group's next step for one row: its new tokens, the position of the first of them, and its KV caches.
pub(super) struct StepInput<'a, O: Ops> {
    pub(super) tokens: Vec<u32>,
    pub(super) position: usize,
    pub(super) caches: Option<&'a [O::KvCache]>,
}

impl<O: Ops> Group<O> {
    /// Inputs of the next step. The first step is the prefill: one row with the start tokens. Later steps run the last
    /// token of each live row.
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
