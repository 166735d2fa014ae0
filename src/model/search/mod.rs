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

use super::ops::BestTokens;
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

/// What a search needs to know about the logits of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedScores {
    /// All of them, because the search changes them or draws from them.
    All,
    /// This many of the largest.
    Best(usize),
}

/// The scores of one row.
#[derive(Debug, Clone, Copy)]
pub enum RowScores<'a> {
    /// The logits of the whole vocabulary.
    All(&'a [f32]),
    /// The best tokens, at least as many as the search wants.
    Best(&'a BestTokens),
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

    /// Returns what the next step needs to know about the logits of each row.
    #[must_use]
    pub fn wanted(&self) -> WantedScores {
        match self {
            Self::Single(search) => search.wanted(),
            Self::Beams(search) => search.wanted(),
        }
    }

    /// Advances the search by one step, with the scores of each live row. The prefill has one row.
    ///
    /// # Errors
    /// [`BackendError::NonFinite`] when logits are NaN or infinite; the search must not be used afterwards.
    pub fn advance(&mut self, scores: &[RowScores<'_>]) -> Result<Advance, BackendError> {
        match self {
            Self::Single(search) => search.advance(scores[0]),
            Self::Beams(search) => search.advance(scores),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scores::{log_sum_exp, top_indices};
    use super::*;
    use crate::task::EarlyStopping;

    /// Logits of 40 tokens for a row of a step, without a pattern and with some equal values.
    fn logits(step: u64, row: usize) -> Vec<f32> {
        let mut state = step * 31 + row as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            ((state >> 33) % 64) as f32 / 8.0
        };
        (0..40).map(|_| next()).collect()
    }

    fn best(logits: &[f32], count: usize) -> BestTokens {
        let best = top_indices(logits, count).into_iter();
        let normalizer = log_sum_exp(logits).unwrap() as f32;
        BestTokens::new(best.map(|id| (id as u32, logits[id])).collect(), normalizer)
    }

    #[test]
    fn the_best_tokens_lead_to_the_sequences_of_all_logits() {
        let strategy = |num_beams| Strategy::Beams {
            num_beams,
            num_return_sequences: num_beams,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Never,
            renormalize_logits: false,
        };
        for strategy in [Strategy::Greedy, strategy(2), strategy(5)] {
            let params = GenerationParams { strategy, ..GenerationParams::greedy(12) };
            let start = SearchStart { prompt: vec![1], stop_token: 0, sequence: 0 };
            let mut by_all = Search::new(&params, start);
            let mut by_best = by_all.clone();
            let WantedScores::Best(count) = by_all.wanted() else { panic!("{params:?}") };
            for step in 0.. {
                let rows = by_all.next_tokens().len().max(1);
                let logits: Vec<Vec<f32>> = (0..rows).map(|row| logits(step, row)).collect();
                let best: Vec<BestTokens> = logits.iter().map(|row| best(row, count)).collect();
                let all: Vec<_> = logits.iter().map(|row| RowScores::All(row)).collect();
                let best: Vec<_> = best.iter().map(RowScores::Best).collect();
                let (all, best) = (by_all.advance(&all).unwrap(), by_best.advance(&best).unwrap());
                assert_eq!(all.parents, best.parents);
                let ids = |finished: &[Sequence]| -> Vec<Vec<u32>> {
                    finished.iter().map(Sequence::text_ids).collect()
                };
                assert_eq!(all.finished.as_deref().map(ids), best.finished.as_deref().map(ids));
                if all.finished.is_some() {
                    break;
                }
            }
        }
    }

    #[test]
    fn searches_that_change_or_draw_scores_want_all_of_them() {
        let params = GenerationParams { min_new_tokens: 2, ..GenerationParams::greedy(12) };
        let start = SearchStart { prompt: vec![1], stop_token: 0, sequence: 0 };
        assert_eq!(Search::new(&params, start).wanted(), WantedScores::All);
    }
}
