//! Search of one sequence. Each step selects the best token (greedy search), or samples a token with noise that depends
//! only on the seed, the sequence and the step.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::processors::Processors;
use super::scores::{argmax, log_sum_exp, top_indices};
use super::{Advance, SearchStart};
use crate::engine::backend::BackendError;
use crate::task::{FinishReason, GenerationParams, Sequence, Strategy, TokenLogprob};

/// State of greedy search or sampling of one sequence.
#[derive(Debug, Clone)]
pub struct SingleSearch {
    processors: Processors,
    sampling: Option<Sampling>,
    max_new_tokens: usize,
    stop_token: u32,
    /// Prompt tokens, followed by the new tokens.
    ids: Vec<u32>,
    tokens: Vec<TokenLogprob>,
}

#[derive(Debug, Clone)]
struct Sampling {
    seed: u64,
    sequence: u64,
    temperature: f32,
    top_k: usize,
    top_p: f32,
}

impl SingleSearch {
    pub(super) fn new(params: &GenerationParams, start: SearchStart) -> Self {
        let sampling = match params.strategy {
            Strategy::Sample { seed, temperature, top_k, top_p, .. } => {
                let sequence = start.sequence as u64;
                Some(Sampling { seed, sequence, temperature, top_k, top_p })
            }
            Strategy::Greedy | Strategy::Beams { .. } => None,
        };
        Self {
            processors: Processors::new(params, start.stop_token),
            sampling,
            max_new_tokens: params.max_new_tokens,
            stop_token: start.stop_token,
            ids: start.prompt,
            tokens: Vec::new(),
        }
    }

    pub(super) fn next_tokens(&self) -> Vec<u32> {
        self.tokens.last().map(|token| token.id).into_iter().collect()
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Result<Advance, BackendError> {
        let normalizer = log_sum_exp(logits)?;
        let mut scores = logits.to_vec();
        self.processors.apply(&mut scores, &self.ids, self.tokens.len());
        let id = match &self.sampling {
            None => argmax(&scores),
            Some(sampling) => sampling.draw(&scores, self.tokens.len() as u64),
        };
        let logprob = (f64::from(logits[id]) - normalizer) as f32;
        let token = TokenLogprob { id: id as u32, logprob };
        self.tokens.push(token);
        self.ids.push(token.id);
        let finish_reason = if token.id == self.stop_token {
            Some(FinishReason::Stop)
        } else if self.tokens.len() >= self.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        let finished = finish_reason.map(|finish_reason| {
            vec![Sequence { tokens: self.tokens.clone(), finish_reason, attention: None }]
        });
        let parents = if finished.is_some() { Vec::new() } else { vec![0] };
        Ok(Advance { token: Some(token), parents, generated: 1, finished })
    }
}

impl Sampling {
    /// Draws a token and returns its id. Applies temperature, top-k and top-p in transformers' order, then inverts the
    /// cumulative distribution at a uniform random number (inverse transform sampling). For this distribution, the
    /// tokens are sorted by descending score; tokens with equal scores are sorted by id.
    fn draw(&self, scores: &[f32], step: u64) -> usize {
        let possible = scores.iter().filter(|score| **score > f32::NEG_INFINITY).count();
        let kept = if self.top_k == 0 { possible } else { self.top_k.min(possible) };
        let mut order = top_indices(scores, kept);
        // Tokens with the same score as the last kept token are kept too, because `TopKLogitsWarper` removes only
        // scores below that score.
        if let Some(&last) = order.last().filter(|_| kept < possible) {
            let equals = (0..scores.len()).filter(|&id| scores[id] >= scores[last]);
            order = equals.collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        }
        let Some(&best) = order.first() else { return argmax(scores) };
        let weight = |id: &usize| {
            (f64::from(scores[*id] - scores[best]) / f64::from(self.temperature)).exp()
        };
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        self.keep_nucleus(&mut weights);
        let total: f64 = weights.iter().sum();
        let mut left = self.uniform(step) * total;
        for (id, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        order[weights.len() - 1]
    }

    /// Port of transformers' `TopPLogitsWarper` (nucleus sampling). Removes weights from the end of the list as long as
    /// the total probability of the removed weights is at most `1 - top_p`. Keeps at least one weight.
    fn keep_nucleus(&self, weights: &mut Vec<f64>) {
        if self.top_p >= 1.0 {
            return;
        }
        let total: f64 = weights.iter().sum();
        let mut tail = 0.0;
        while weights.len() > 1 {
            tail += weights[weights.len() - 1] / total;
            if tail > 1.0 - f64::from(self.top_p) {
                break;
            }
            weights.pop();
        }
    }

    /// Returns a random number in 0..1 that depends only on the seed, the sequence and the step.
    fn uniform(&self, step: u64) -> f64 {
        let mut noise = ChaCha8Rng::seed_from_u64(self.seed);
        noise.set_stream(self.sequence);
        noise.set_word_pos(u128::from(step) * 2);
        // Only the upper 53 bits are used, because an f64 cannot hold more exactly.
        (noise.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(seed: u64, sequence: usize, top_k: usize, top_p: f32) -> SingleSearch {
        let strategy =
            Strategy::Sample { seed, num_return_sequences: 2, temperature: 1.0, top_k, top_p };
        let params = GenerationParams { strategy, ..GenerationParams::greedy(8) };
        SingleSearch::new(&params, SearchStart { prompt: vec![1], stop_token: 0, sequence })
    }

    fn ids(search: &mut SingleSearch, logits: &[f32]) -> Vec<u32> {
        while search.advance(logits).unwrap().finished.is_none() {}
        search.tokens.iter().map(|token| token.id).collect()
    }

    #[test]
    fn a_seed_draws_the_same_text_again_and_sequences_differ() {
        let logits: Vec<f32> = std::iter::once(-50.0).chain((1..64).map(|_| 0.0)).collect();
        let first = ids(&mut sampled(7, 0, 0, 1.0), &logits);
        assert_eq!(first, ids(&mut sampled(7, 0, 0, 1.0), &logits));
        assert_ne!(first, ids(&mut sampled(7, 1, 0, 1.0), &logits));
        assert_ne!(first, ids(&mut sampled(8, 0, 0, 1.0), &logits));
    }

    #[test]
    fn top_k_of_one_and_a_tiny_nucleus_are_greedy() {
        let logits = [0.0, 0.5, 3.0, 1.0];
        for mut search in [sampled(3, 0, 1, 1.0), sampled(3, 0, 0, 1e-6)] {
            assert_eq!(ids(&mut search, &logits), [2; 8]);
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // The probabilities are 1/2, 1/4 and 1/4. Over 4,000 draws, four standard deviations of a frequency are less
        // than 0.032, the accepted error.
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        let mut counts = [0u32; 3];
        for seed in 0..4000 {
            let search = sampled(seed, 0, 0, 1.0);
            counts[search.sampling.as_ref().unwrap().draw(&logits, 0)] += 1;
        }
        assert!((f64::from(counts[0]) / 4000.0 - 0.5).abs() < 0.032, "{counts:?}");
        assert!((f64::from(counts[1]) / 4000.0 - 0.25).abs() < 0.032, "{counts:?}");
    }
}
