//! How the next token is chosen: search strategies over the logits of one step, on the host.
//! Source: transformers 5.23 `generation/utils.py` and `generation/logits_process.py`.
//!
//! A search belongs to one group. It knows nothing of caches or towers: each step it is given the logits of
//! its live rows and says which rows go on, and from which.

mod beams;
mod processors;
mod scores;
mod single;

pub use scores::log_softmax;

use crate::engine::backend::BackendError;
use crate::task::{GenerationParams, Sequence, Strategy, TokenLogprob};

use beams::BeamSearch;
use single::SingleSearch;

/// What a search needs besides its parameters.
#[derive(Debug, Clone)]
pub struct SearchStart {
    /// Start token and prompt; penalties see them.
    pub prompt: Vec<u32>,
    /// The stop token (`sep_token_id`).
    pub stop_token: u32,
    /// Which of the sequences drawn; keys the sampling noise.
    pub sequence: usize,
}

/// The search state of one group.
#[derive(Debug, Clone)]
pub enum Search {
    /// One sequence, greedy or sampled.
    Single(SingleSearch),
    /// A beam set.
    Beams(BeamSearch),
}

/// What one step decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// The token that a single sequence appended.
    pub token: Option<TokenLogprob>,
    /// For each row that goes on, the row of this step that it continues.
    pub parents: Vec<usize>,
    /// Tokens generated in this step.
    pub generated: usize,
    /// All sequences, best first, when this was the last step.
    pub finished: Option<Vec<Sequence>>,
}

impl Search {
    /// A search before its first step.
    #[must_use]
    pub fn new(params: &GenerationParams, start: SearchStart) -> Self {
        match params.strategy {
            Strategy::Beams { .. } => Self::Beams(BeamSearch::new(params, start)),
            Strategy::Greedy | Strategy::Sample { .. } => {
                Self::Single(SingleSearch::new(params, start))
            }
        }
    }

    /// The token that each live row runs next; the prompt's step comes before any of them.
    #[must_use]
    pub fn next_tokens(&self) -> Vec<u32> {
        match self {
            Self::Single(search) => search.next_tokens(),
            Self::Beams(search) => search.next_tokens(),
        }
    }

    /// Takes the logits of each live row, one row alone for the prompt's step.
    ///
    /// # Errors
    /// [`BackendError::NonFinite`] when logits are NaN or infinite; the search is then useless.
    pub fn advance(&mut self, logits: &[Vec<f32>]) -> Result<Advance, BackendError> {
        match self {
            Self::Single(search) => search.advance(&logits[0]),
            Self::Beams(search) => search.advance(logits),
        }
    }
}
