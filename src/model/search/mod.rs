//! Search strategies, which choose the next token from the logits of a decode step, on the host. Source: transformers
//! 5.23 `generation/utils.py` and `generation/logits_process.py`.
//!
//! A search belongs to one group (a sequence, or the beams of one beam search). It knows nothing about KV caches or
//! towers. In each step, it receives the logits of the group's live rows. For each row of the next step, it returns the
//! index of the row of this step that the new row continues.

mod beams;
mod processors;
mod sampling;
mod scores;
mod single;

pub use scores::log_softmax;

use crate::engine::backend::BackendError;
use crate::task::{GenerationParams, Sequence, Strategy, TokenLogprob};

use beams::BeamSearch;
use single::SingleSearch;

/// Start state of a search, apart from its generation parameters.
#[derive(Debug, Clone)]
pub struct SearchStart {
    /// Start token and prompt tokens. The repetition penalty and the n-gram ban take them into account.
    pub prompt: Vec<u32>,
    /// Token that ends a sequence (`sep_token_id`).
    pub stop_token: u32,
    /// Index of the sequence among those that are sampled for one request. The sampling noise depends on it.
    pub sequence: usize,
}

/// The search state of one group.
#[derive(Debug, Clone)]
pub enum Search {
    /// Greedy search or sampling of one sequence.
    Single(SingleSearch),
    /// Beam search over several sequences.
    Beams(BeamSearch),
}

/// Result of one decode step of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// The token that greedy search or sampling appended; `None` for beam search.
    pub token: Option<TokenLogprob>,
    /// For each row of the next step, the index of the row of this step that it continues.
    pub parents: Vec<usize>,
    /// Number of tokens generated in this step, over all beams.
    pub generated: usize,
    /// All sequences, best first, if this was the last step.
    pub finished: Option<Vec<Sequence>>,
}

impl Search {
    /// Creates a search that has not run a step yet.
    #[must_use]
    pub fn new(params: &GenerationParams, start: SearchStart) -> Self {
        match params.strategy {
            Strategy::Beams { .. } => Self::Beams(BeamSearch::new(params, start)),
            Strategy::Greedy | Strategy::Sample { .. } => {
                Self::Single(SingleSearch::new(params, start))
            }
        }
    }

    /// Returns the next input token of each live row. The list is empty before the first step, which runs the prompt.
    #[must_use]
    pub fn next_tokens(&self) -> Vec<u32> {
        match self {
            Self::Single(search) => search.next_tokens(),
            Self::Beams(search) => search.next_tokens(),
        }
    }

    /// Advances the search by one step, with the logits of each live row. The prefill has one row.
    ///
    /// # Errors
    /// [`BackendError::NonFinite`] when logits are NaN or infinite; the search must not be used afterwards.
    pub fn advance(&mut self, logits: &[&[f32]]) -> Result<Advance, BackendError> {
        match self {
            Self::Single(search) => search.advance(logits[0]),
            Self::Beams(search) => search.advance(logits),
        }
    }
}
