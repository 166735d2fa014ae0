//! Logits processors, in the order of transformers' `_get_logits_processor`: repetition penalty, n-gram ban, bad words,
//! minimum length, exponential decay of the length. The cutoffs of sampling follow in `sampling`, the renormalization of
//! beam search in `beams`.

use std::sync::Arc;

use crate::task::{ExponentialDecay, GenerationParams};

/// Largest amount by which the exponential decay raises the score of the stop token. It exceeds every score of a model,
/// so that the stop token is chosen, and is far below the 1e9 with which beam search marks choices that are not allowed.
const LARGEST_PENALTY: f64 = 1.0e8;

/// The logits processors of one group.
#[derive(Debug, Clone)]
pub(super) struct Processors {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    bad_words: Option<Arc<[Box<[u32]>]>>,
    min_new_tokens: usize,
    decay: Option<ExponentialDecay>,
    stop_token: u32,
}

impl Processors {
    pub(super) fn new(params: &GenerationParams, stop_token: u32) -> Self {
        Self {
            repetition_penalty: params.repetition_penalty,
            no_repeat_ngram_size: params.no_repeat_ngram_size,
            bad_words: params.bad_words.clone(),
            min_new_tokens: params.min_new_tokens,
            decay: params.exponential_decay_length_penalty,
            stop_token,
        }
    }

    /// True if a processor may change scores. Otherwise, a search need not copy them.
    pub(super) fn are_active(&self) -> bool {
        self.penalizes_repetition()
            || self.no_repeat_ngram_size > 0
            || self.bad_words.is_some()
            || self.min_new_tokens > 0
            || self.decay.is_some()
    }

    fn penalizes_repetition(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() >= f32::EPSILON
    }

    /// Applies all processors to the `scores` of a row. `tokens` are the row's tokens so far, including the prompt; the
    /// last `generated` of them are new.
    pub(super) fn apply(&self, scores: &mut [f32], tokens: &[u32], generated: usize) {
        self.penalize_repetition(scores, tokens);
        self.ban_repeated_ngrams(scores, tokens);
        self.ban_bad_words(scores, tokens);
        if generated < self.min_new_tokens {
            scores[self.stop_token as usize] = f32::NEG_INFINITY;
        }
        self.penalize_length(scores, generated);
    }

    /// Port of transformers' `RepetitionPenaltyLogitsProcessor`. Divides the score of each token that already occurs by
    /// the penalty if the score is positive, and multiplies the score by the penalty if it is negative. A token that
    /// occurs several times is penalised once.
    fn penalize_repetition(&self, scores: &mut [f32], tokens: &[u32]) {
        let penalty = self.repetition_penalty;
        if !self.penalizes_repetition() {
            return;
        }
        let mut present = tokens.to_vec();
        present.sort_unstable();
        present.dedup();
        for token in present {
            let score = &mut scores[token as usize];
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }

    /// Port of transformers' `NoRepeatNGramLogitsProcessor`. Bans every token that would complete an n-gram for the
    /// second time.
    fn ban_repeated_ngrams(&self, scores: &mut [f32], tokens: &[u32]) {
        let size = self.no_repeat_ngram_size;
        if size == 0 || tokens.len() < size {
            return;
        }
        let prefix = &tokens[tokens.len() + 1 - size..];
        for window in tokens.windows(size) {
            let (start, last) = window.split_at(size - 1);
            if start == prefix {
                scores[last[0] as usize] = f32::NEG_INFINITY;
            }
        }
    }

    /// Port of transformers' `NoBadWordsLogitsProcessor`. Bans a word of one token always, and the last token of a
    /// longer word wherever the tokens before it end the text.
    fn ban_bad_words(&self, scores: &mut [f32], tokens: &[u32]) {
        for word in self.bad_words.iter().flat_map(|words| words.iter()) {
            let Some((&last, prefix)) = word.split_last() else { continue };
            if last != self.stop_token && tokens.ends_with(prefix) {
                scores[last as usize] = f32::NEG_INFINITY;
            }
        }
    }

    /// Port of transformers' `ExponentialDecayLengthPenalty`. A stop token that is banned stays banned.
    fn penalize_length(&self, scores: &mut [f32], generated: usize) {
        let Some(ExponentialDecay { start, factor }) = self.decay else { return };
        let score = &mut scores[self.stop_token as usize];
        if generated > start && score.is_finite() {
            let growth = factor.powf((generated - start) as f64) - 1.0;
            *score += (f64::from(score.abs()) * growth).min(LARGEST_PENALTY) as f32;
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "products of powers of two are exact")]
mod tests {
    use super::*;

    fn processors(penalty: f32, ngram: usize, min: usize) -> Processors {
        let params = GenerationParams {
            repetition_penalty: penalty,
            no_repeat_ngram_size: ngram,
            min_new_tokens: min,
            ..GenerationParams::greedy(20)
        };
        Processors::new(&params, 0)
    }

    #[test]
    fn penalty_divides_positive_and_multiplies_negative_scores_once() {
        let mut scores = [4.0, -4.0, 4.0];
        processors(2.0, 0, 0).apply(&mut scores, &[0, 1, 0, 1], 4);
        assert_eq!(scores, [2.0, -8.0, 4.0]);
    }

    #[test]
    fn a_second_bigram_is_impossible() {
        let mut scores = [0.0; 4];
        processors(1.0, 2, 0).apply(&mut scores, &[1, 2, 3, 1], 4);
        assert_eq!(scores, [0.0, 0.0, f32::NEG_INFINITY, 0.0]);
    }

    #[test]
    fn unigrams_ban_every_token_present() {
        let mut scores = [0.0; 3];
        processors(1.0, 1, 0).apply(&mut scores, &[2], 1);
        assert_eq!(scores, [0.0, 0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_bad_word_is_banned_at_its_last_token() {
        let words: [Box<[u32]>; 4] = [[1].into(), [2, 3].into(), [4, 4, 5].into(), [0].into()];
        let params =
            GenerationParams { bad_words: Some(words.into()), ..GenerationParams::greedy(20) };
        let banned = |tokens: &[u32]| -> Vec<usize> {
            let mut scores = [0.0; 6];
            Processors::new(&params, 0).apply(&mut scores, tokens, 0);
            (0..6).filter(|&id| scores[id] == f32::NEG_INFINITY).collect()
        };
        // The stop token 0 is never banned.
        assert_eq!(banned(&[]), [1]);
        assert_eq!(banned(&[2]), [1, 3]);
        assert_eq!(banned(&[2, 5]), [1]);
        assert_eq!(banned(&[4]), [1]);
        assert_eq!(banned(&[3, 4, 4]), [1, 5]);
    }

    #[test]
    fn the_stop_token_gains_from_the_step_after_the_start_unless_it_is_banned() {
        let decayed = |score: f32, factor: f64, generated: usize, min_new_tokens: usize| {
            let params = GenerationParams {
                min_new_tokens,
                exponential_decay_length_penalty: Some(ExponentialDecay { start: 3, factor }),
                ..GenerationParams::greedy(20)
            };
            let mut scores = [score, 1.0];
            Processors::new(&params, 0).apply(&mut scores, &[1], generated);
            assert_eq!(scores[1], 1.0);
            scores[0]
        };
        assert_eq!(decayed(-2.0, 2.0, 3, 0), -2.0);
        assert_eq!(decayed(-2.0, 2.0, 4, 0), 0.0);
        assert_eq!(decayed(-2.0, 2.0, 5, 0), 4.0);
        assert_eq!(decayed(2.0, 2.0, 5, 0), 8.0);
        assert_eq!(decayed(2.0, 0.5, 4, 0), 1.0);
        assert_eq!(decayed(-2.0, 2.0, 5, 6), f32::NEG_INFINITY);
        assert_eq!(decayed(-2.0, 100.0, 500, 0), 1.0e8 - 2.0);
    }

    #[test]
    fn the_stop_token_waits_for_the_minimum() {
        let mut scores = [0.0; 2];
        processors(1.0, 0, 3).apply(&mut scores, &[1], 2);
        assert_eq!(scores, [f32::NEG_INFINITY, 0.0]);
        let mut scores = [0.0; 2];
        processors(1.0, 0, 3).apply(&mut scores, &[1], 3);
        assert_eq!(scores, [0.0, 0.0]);
    }
}
