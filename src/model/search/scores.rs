//! Arithmetic on one row of logits: log-softmax, argmax and top-k.

use crate::engine::backend::BackendError;
use crate::kernels::isa::Level;
use crate::kernels::pointwise;

/// Returns the natural log-probabilities of a row of logits: `x - max - ln(sum(exp(x - max)))`, with the sum in f64.
///
/// # Errors
/// [`BackendError::NonFinite`] when a logit is NaN or infinite.
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>, BackendError> {
    let normalizer = log_sum_exp(logits)?;
    Ok(logits.iter().map(|&logit| (f64::from(logit) - normalizer) as f32).collect())
}

/// Returns `ln(sum(exp(x)))` of the logits, computed in f64.
pub(super) fn log_sum_exp(logits: &[f32]) -> Result<f64, BackendError> {
    // This function ignores the setting `cpu_isa` and uses the highest instruction set level of the CPU. Vector
    // instructions matter here: computed one by one, the exponentials of a whole vocabulary would take as long as a
    // layer of the model.
    pointwise::log_sum_exp(Level::detect(), logits)
        .map(|(_, normalizer)| normalizer)
        .ok_or(BackendError::NonFinite("logits"))
}

/// Port of transformers' `LogitNormalization`: turns processed scores into log-probabilities. Scores of minus infinity
/// stay as they are; if all are, nothing changes.
pub(super) fn renormalize(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return;
    }
    let sum: f64 = scores.iter().map(|&score| f64::from(score - largest).exp()).sum();
    let normalizer = f64::from(largest) + sum.ln();
    for score in scores {
        *score = (f64::from(*score) - normalizer) as f32;
    }
}

/// Returns the index of the largest score, or the first such index if several scores are equal.
pub(super) fn argmax(scores: &[f32]) -> usize {
    // Compilers vectorise sixteen independent maxima. A single maximum would be a chain of dependent comparisons.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = scores.chunks_exact(lanes.len());
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = if score > *lane { score } else { *lane };
        }
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter().position(|&score| score >= largest).unwrap_or(0)
}

/// Returns the indices of the `count` largest scores (top-k), best first. Equal scores keep the order of their indices.
pub(super) fn top_indices(scores: &[f32], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..scores.len()).collect();
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    let count = count.min(indices.len());
    if count < indices.len() && count > 0 {
        indices.select_nth_unstable_by(count - 1, order);
    }
    indices.truncate(count);
    indices.sort_unstable_by(order);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_sums_to_one_and_survives_large_logits() {
        let row = log_softmax(&[1000.0, 999.0, -1000.0]).unwrap();
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert!((row[0] - row[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn renormalized_scores_sum_to_one_and_banned_ones_stay_banned() {
        let mut scores = [3.0, f32::NEG_INFINITY, 3.0, -1000.0];
        renormalize(&mut scores);
        assert!((scores[0] - 0.5f32.ln()).abs() < 1e-6 && (scores[2] - scores[0]).abs() < 1e-6);
        assert!(scores[1] == f32::NEG_INFINITY && scores[3] < -1000.0);
        let mut banned = [f32::NEG_INFINITY; 2];
        renormalize(&mut banned);
        assert!(banned.iter().all(|&score| score == f32::NEG_INFINITY));
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(log_softmax(&[0.0, bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn top_indices_come_best_first_and_ties_keep_their_order() {
        let scores = [1.0, 3.0, 2.0, 3.0, -1.0];
        assert_eq!(top_indices(&scores, 3), [1, 3, 2]);
        assert_eq!(top_indices(&scores, 9), [1, 3, 2, 0, 4]);
        assert!(top_indices(&scores, 0).is_empty());
        assert_eq!(argmax(&scores), 1);
    }

    #[test]
    fn argmax_is_the_first_of_equals_at_any_length() {
        for length in [1, 2, 15, 16, 17, 33, 1000] {
            for place in [0, length / 2, length - 1] {
                let mut scores = vec![-2.0f32; length];
                scores[place..].iter_mut().step_by(3).for_each(|score| *score = -1.0);
                assert_eq!(argmax(&scores), place, "{length}");
            }
            assert_eq!(argmax(&vec![f32::NEG_INFINITY; length]), 0);
        }
    }
}
