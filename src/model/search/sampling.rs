//! Sampling of one token: temperature and cutoffs in transformers' order, then a draw with noise that depends only on
//! the seed, the sequence and the step. Source: transformers 5.23 `generation/logits_process.py`, the classes whose names
//! end in `LogitsWarper`. The arithmetic here is in f64.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::scores::{argmax, top_indices};
use crate::task::{Cutoffs, Strategy};

/// How the tokens of one sequence are sampled.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    seed: u64,
    sequence: u64,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    cutoffs: Cutoffs,
}

/// The tokens that the cutoffs have kept, by descending score, each with its weight: its probability divided by that of
/// the most probable of all tokens. Tokens with equal scores are sorted by id.
#[derive(Debug)]
struct Kept(Vec<(usize, f64)>);

impl Sampling {
    /// Returns how the sequence with this index is sampled, or `None` for a strategy that does not sample.
    pub(super) fn of(strategy: &Strategy, sequence: usize) -> Option<Self> {
        match *strategy {
            Strategy::Sample { seed, temperature, top_k, top_p, cutoffs, .. } => {
                let sequence = sequence as u64;
                Some(Self { seed, sequence, temperature, top_k, top_p, cutoffs })
            }
            Strategy::Greedy | Strategy::Beams { .. } => None,
        }
    }

    /// Draws a token and returns its id: inverts the cumulative distribution of the kept tokens at a uniform random
    /// number (inverse transform sampling).
    pub(super) fn draw(&self, scores: &[f32], step: u64) -> usize {
        let Kept(kept) = self.kept(scores);
        let Some(&(worst, _)) = kept.last() else { return argmax(scores) };
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = self.uniform(step) * total;
        for (id, weight) in kept {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        worst
    }

    /// Applies temperature, `top_k`, `top_p` and the further cutoffs. The result is empty only if no token is possible.
    fn kept(&self, scores: &[f32]) -> Kept {
        let mut kept = Kept::top_k(scores, self.top_k, self.temperature);
        kept.keep_nucleus(self.top_p);
        let Cutoffs { min_p, typical_p, epsilon_cutoff, eta_cutoff } = self.cutoffs;
        kept.cut_below(f64::from(min_p));
        kept.keep_typical(typical_p);
        if epsilon_cutoff > 0.0 {
            kept.cut_below(f64::from(epsilon_cutoff) * kept.total());
        }
        if eta_cutoff > 0.0 {
            let epsilon = f64::from(eta_cutoff);
            let eta = epsilon.min(epsilon.sqrt() * (-kept.entropy()).exp());
            kept.cut_below(eta * kept.total());
        }
        kept
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

impl Kept {
    /// Port of `TemperatureLogitsWarper` and `TopKLogitsWarper`. Keeps the `top_k` tokens with the largest scores, or all
    /// possible tokens if `top_k` is 0.
    fn top_k(scores: &[f32], top_k: usize, temperature: f32) -> Self {
        let possible = scores.iter().filter(|score| **score > f32::NEG_INFINITY).count();
        let count = if top_k == 0 { possible } else { top_k.min(possible) };
        let mut order = top_indices(scores, count);
        // Tokens with the same score as the last kept token are kept too, because `TopKLogitsWarper` removes only
        // scores below that score.
        if let Some(&last) = order.last().filter(|_| count < possible) {
            let equals = (0..scores.len()).filter(|&id| scores[id] >= scores[last]);
            order = equals.collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        }
        let Some(&best) = order.first() else { return Self(Vec::new()) };
        let weight =
            |id: usize| (f64::from(scores[id] - scores[best]) / f64::from(temperature)).exp();
        Self(order.into_iter().map(|id| (id, weight(id))).collect())
    }

    /// Port of `TopPLogitsWarper` (nucleus sampling). Removes tokens from the end of the list as long as the total
    /// probability of the removed tokens is at most `1 - top_p`. Keeps at least one token.
    fn keep_nucleus(&mut self, top_p: f32) {
        if top_p >= 1.0 {
            return;
        }
        let total = self.total();
        let mut tail = 0.0;
        while self.0.len() > 1 {
            tail += self.0[self.0.len() - 1].1 / total;
            if tail > 1.0 - f64::from(top_p) {
                break;
            }
            self.0.pop();
        }
    }

    /// Removes the tokens whose weight is below `least`. Keeps the best token, and those that are as probable. With the
    /// fraction of `MinPLogitsWarper` as `least`, this is that class, because the weight of the best token is 1 there.
    fn cut_below(&mut self, least: f64) {
        let Some(&(_, best)) = self.0.first() else { return };
        let kept = self.0.partition_point(|&(_, weight)| weight >= least.min(best));
        self.0.truncate(kept);
    }

    /// Port of `TypicalLogitsWarper` (locally typical sampling). Sorts the tokens by the distance between their
    /// information content and the entropy, and keeps them up to the first one with which their probabilities sum to
    /// `mass`.
    fn keep_typical(&mut self, mass: f32) {
        if mass >= 1.0 || self.0.is_empty() {
            return;
        }
        let (total, entropy) = (self.total(), self.entropy());
        let distance = |weight: f64| (-(weight / total).ln() - entropy).abs();
        let mut distances: Vec<(f64, f64)> =
            self.0.iter().map(|&(_, weight)| (distance(weight), weight / total)).collect();
        distances.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sum = 0.0;
        let last = distances.iter().find(|(_, probability)| {
            sum += probability;
            sum >= f64::from(mass)
        });
        let farthest = last.or(distances.last()).map_or(f64::INFINITY, |(distance, _)| *distance);
        self.0.retain(|&(_, weight)| distance(weight) <= farthest);
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|(_, weight)| weight).sum()
    }

    /// Returns the entropy of the distribution in nats.
    fn entropy(&self) -> f64 {
        let total = self.total();
        let terms = self.0.iter().map(|(_, weight)| weight / total);
        -terms.filter(|&probability| probability > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Sampling = Sampling {
        seed: 7,
        sequence: 0,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        cutoffs: Cutoffs { min_p: 0.0, typical_p: 1.0, epsilon_cutoff: 0.0, eta_cutoff: 0.0 },
    };

    fn cutoffs(change: impl FnOnce(&mut Cutoffs)) -> Sampling {
        let mut sampling = NONE;
        change(&mut sampling.cutoffs);
        sampling
    }

    /// Ids that are kept of tokens with these probabilities.
    fn kept(sampling: &Sampling, probabilities: &[f32]) -> Vec<usize> {
        let scores: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        sampling.kept(&scores).0.into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn draws_follow_the_distribution() {
        // The probabilities are 1/2, 1/4 and 1/4. Over 4,000 draws, four standard deviations of a frequency are less
        // than 0.032, the accepted error.
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        let mut counts = [0u32; 3];
        for seed in 0..4000 {
            counts[Sampling { seed, ..NONE }.draw(&logits, 0)] += 1;
        }
        assert!((f64::from(counts[0]) / 4000.0 - 0.5).abs() < 0.032, "{counts:?}");
        assert!((f64::from(counts[1]) / 4000.0 - 0.25).abs() < 0.032, "{counts:?}");
    }

    #[test]
    fn each_cutoff_keeps_its_tokens() {
        let probabilities = [0.1, 0.5, 0.02, 0.3, 0.08];
        let cases = [
            ("none", NONE, vec![1, 3, 0, 4, 2]),
            ("min_p", cutoffs(|c| c.min_p = 0.19), vec![1, 3, 0]),
            ("min_p of 1", cutoffs(|c| c.min_p = 1.0), vec![1]),
            ("epsilon", cutoffs(|c| c.epsilon_cutoff = 0.05), vec![1, 3, 0, 4]),
            ("epsilon above all", cutoffs(|c| c.epsilon_cutoff = 0.9), vec![1]),
            // The entropy is 1.218 nats, so the smaller threshold is sqrt(0.2) * exp(-1.218) = 0.132.
            ("eta", cutoffs(|c| c.eta_cutoff = 0.2), vec![1, 3]),
            // Distances to the entropy: 0.525, 1.085, 2.694, 0.014 and 1.308.
            ("typical", cutoffs(|c| c.typical_p = 0.25), vec![3]),
            ("typical", cutoffs(|c| c.typical_p = 0.35), vec![1, 3]),
            ("typical", cutoffs(|c| c.typical_p = 0.95), vec![1, 3, 0, 4]),
        ];
        for (name, sampling, expected) in cases {
            assert_eq!(kept(&sampling, &probabilities), expected, "{name}");
        }
    }

    #[test]
    fn tokens_as_probable_as_the_best_are_kept_and_nothing_possible_is_argmax() {
        let two = cutoffs(|c| c.epsilon_cutoff = 0.99);
        assert_eq!(kept(&two, &[0.4, 0.2, 0.4]), [0, 2]);
        // Typical sampling removes the best token here; of the others, the best are kept.
        let rest = cutoffs(|c| *c = Cutoffs { typical_p: 0.5, epsilon_cutoff: 0.5, ..*c });
        assert_eq!(kept(&rest, &[0.15, 0.15, 0.4, 0.15, 0.15]), [0, 1, 3, 4]);
        let all = cutoffs(|c| {
            *c = Cutoffs { min_p: 0.1, typical_p: 0.5, epsilon_cutoff: 0.1, eta_cutoff: 0.1 }
        });
        assert_eq!(all.draw(&[f32::NEG_INFINITY; 3], 0), 0);
    }

    /// Returns the sampling of a golden, which lists its parameters under their names in the API.
    fn sampling(params: &serde_json::Value) -> Sampling {
        let number = |name: &str, default: f64| params[name].as_f64().unwrap_or(default) as f32;
        Sampling {
            temperature: number("temperature", 1.0),
            top_k: params["top_k"].as_u64().unwrap_or(0) as usize,
            top_p: number("top_p", 1.0),
            cutoffs: Cutoffs {
                min_p: number("min_p", 0.0),
                typical_p: number("typical_p", 1.0),
                epsilon_cutoff: number("epsilon_cutoff", 0.0),
                eta_cutoff: number("eta_cutoff", 0.0),
            },
            ..NONE
        }
    }

    #[test]
    fn the_distributions_after_the_cutoffs_equal_the_reference() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let json = std::fs::read(fixtures.join("reference/parameters.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let goldens = json["warpers"].as_array().unwrap();
        assert!(goldens.len() >= 15, "{}", goldens.len());
        for golden in goldens {
            let row = json["rows"][golden["row"].as_str().unwrap()].as_array().unwrap();
            let score =
                |value: &serde_json::Value| value.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
            let scores: Vec<f32> = row.iter().map(score).collect();
            let kept = sampling(&golden["params"]).kept(&scores);
            let total = kept.total();
            let mut actual: Vec<(usize, f64)> =
                kept.0.iter().map(|(id, weight)| (*id, weight / total)).collect();
            actual.sort_by_key(|(id, _)| *id);
            let ids =
                golden["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize);
            let probabilities = golden["probabilities"].as_array().unwrap().iter();
            let expected: Vec<(usize, f64)> =
                ids.zip(probabilities.map(|p| p.as_f64().unwrap())).collect();
            assert_eq!(actual.len(), expected.len(), "{}: {actual:?}", golden["name"]);
            for (actual, expected) in actual.iter().zip(expected) {
                assert_eq!(actual.0, expected.0, "{}", golden["name"]);
                assert!((actual.1 - expected.1).abs() < 1e-5, "{}: {actual:?}", golden["name"]);
            }
        }
    }
}
