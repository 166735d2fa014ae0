//! Logits processors, in transformers' order: repetition penalty, n-gram ban, minimum length.

use crate::task::GenerationParams;

/// The logits processors of one group.
#[derive(Debug, Clone)]
pub(super) struct Processors {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    min_new_tokens: usize,
    stop_token: u32,
}

impl Processors {
    pub(super) fn new(params: &GenerationParams, stop_token: u32) -> Self {
        Self {
            repetition_penalty: params.repetition_penalty,
            no_repeat_ngram_size: params.no_repeat_ngram_size,
            min_new_tokens: params.min_new_tokens,
            stop_token,
        }
    }

    /// Applies all processors to the `scores` of a row. `tokens` are the row's tokens so far, including the prompt; the
    /// last `generated` of them are new.
    pub(super) fn apply(&self, scores: &mut [f32], tokens: &[u32], generated: usize) {
        self.penalize_repetition(scores, tokens);
        self.ban_repeated_ngrams(scores, tokens);
        if generated < self.min_new_tokens {
            scores[self.stop_token as usize] = f32::NEG_INFINITY;
        }
    }

    /// Port of transformers' `RepetitionPenaltyLogitsProcessor`. Divides the score of each token that already occurs by
    /// the penalty if the score is positive, and multiplies the score by the penalty if it is negative. A token that
    /// occurs several times is penalised once.
    fn penalize_repetition(&self, scores: &mut [f32], tokens: &[u32]) {
        let penalty = self.repetition_penalty;
        if (penalty - 1.0).abs() < f32::EPSILON {
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
    fn the_stop_token_waits_for_the_minimum() {
        let mut scores = [0.0; 2];
        processors(1.0, 0, 3).apply(&mut scores, &[1], 2);
        assert_eq!(scores, [f32::NEG_INFINITY, 0.0]);
        let mut scores = [0.0; 2];
        processors(1.0, 0, 3).apply(&mut scores, &[1], 3);
        assert_eq!(scores, [0.0, 0.0]);
    }
}
