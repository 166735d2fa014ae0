//! Scores of given texts: the log-probability of each token, and the outputs of the matching head.

use super::TokenLogprob;

/// A candidate text that a decoder has scored: its tokens after the start token, `[SEP]` included.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredText {
    /// The tokens in order, at least `[SEP]`.
    pub tokens: Vec<TokenLogprob>,
}

impl ScoredText {
    /// Returns the sum of the tokens' natural log-probabilities, accumulated in f64.
    #[must_use]
    pub fn logprob(&self) -> f32 {
        self.tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>() as f32
    }
}

/// Outputs of the image-text matching head for one pair, before softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatchLogits {
    /// Output for "the text does not describe the image".
    pub no_match: f32,
    /// Output for "the text describes the image".
    pub is_match: f32,
}

impl MatchLogits {
    /// Returns the softmax probability of "match", 0..=1, computed in f64.
    #[must_use]
    pub fn probability(self) -> f32 {
        (1.0 / (1.0 + (f64::from(self.no_match) - f64::from(self.is_match)).exp())) as f32
    }
}
