//! Encoder states and groups. Text towers attend to encoder states. A group contains the sequences that one search
//! decodes: a single sequence, or the beams of one beam search. The group also holds the KV caches and the state of the
//! search.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::ops::Ops;
use super::search::Search;
use crate::engine::backend::BackendError;
use crate::task::{Explain, ModelId, PatchWeights};

/// Cross-attention keys and values of one image or question, for every layer of one decoder.
pub(super) type CrossKvCache<O> = Vec<<O as Ops>::KvCache>;

/// Encoder states: an image's features or an encoded question. Clones share the states, and also the cross-attention
/// keys and values that decoders compute from them.
#[derive(Debug)]
pub struct EncoderStates<O: Ops>(Arc<EncoderStatesInner<O>>);

struct EncoderStatesInner<O: Ops> {
    /// Hidden states, `[tokens, width]`, on the device.
    states: O::Act,
    /// Cross-attention keys and values per model. They are built in the first decode step of the first group that needs
    /// them, and freed with the last such group. Only the groups own them; this list lets later groups find them.
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

    /// Returns the hidden states, `[tokens, width]`, on the device.
    pub(super) fn states(&self) -> &O::Act {
        &self.0.states
    }

    /// True if both are clones of the same encoder states.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the cross-attention keys and values for `model`'s decoder. If a live group already holds keys and
    /// values, returns these; otherwise builds new ones from the hidden states with `build`.
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

/// The sequences that one search decodes: a single sequence, or the beams of one beam search.
pub struct Group<O: Ops> {
    pub(super) memory: EncoderStates<O>,
    /// Cross-attention keys and values; `None` before the first step.
    pub(super) cross: Option<Arc<CrossKvCache<O>>>,
    /// The start token, followed by the prompt tokens.
    pub(super) start: Vec<u32>,
    /// The live rows, one per beam. Empty before the first step.
    pub(super) rows: Vec<LiveRow<O>>,
    pub(super) search: Search,
    /// The layers whose attention weights are collected, and the weights of the tokens generated so far.
    pub(super) explained: Option<(Explain, Vec<PatchWeights>)>,
}

/// KV cache of one live row, that is, of one sequence or beam.
pub(super) struct LiveRow<O: Ops> {
    /// KV cache of each layer.
    pub(super) caches: Vec<O::KvCache>,
    /// Number of tokens in the caches, which is also the position of the next token.
    pub(super) length: usize,
}

impl<O: Ops> Clone for LiveRow<O> {
    fn clone(&self) -> Self {
        Self { caches: self.caches.clone(), length: self.length }
    }
}

impl<O: Ops> std::fmt::Debug for Group<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({} rows, start {:?})", self.rows.len(), self.start)
    }
}

/// Input of the next decode step for one row of a group: the row's new tokens, the position of the first new token, and
/// the row's KV caches (`None` in the first step).
pub(super) struct StepInput<'a, O: Ops> {
    pub(super) tokens: Vec<u32>,
    pub(super) position: usize,
    pub(super) caches: Option<&'a [O::KvCache]>,
}

impl<O: Ops> Group<O> {
    /// Returns the inputs of the next step, one per row. The first step is the prefill, which has one row with the
    /// start tokens. Later steps run the last token of each live row.
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
