//! Texts that the client gives to be scored instead of generated (`candidates` of `/caption` and `/vqa`): their checks,
//! their tokens, and their ranking.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::endpoint::check_count;
use super::sequences::{TokenAnswer, finite, wrong_count};
use super::text::TextEncoder;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Text;
use crate::http::extract::generation::GenerationFields;
use crate::http::settings::Limits;
use crate::input::Tokenizer;
use crate::task::{ScoredText, TokenIds};

/// How probable a given text is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CandidateScore {
    /// Sum of the natural log-probabilities of its tokens, including the stop token.
    #[schema(example = -0.3, maximum = 0)]
    logprob: f32,
    /// `logprob` divided by `token_count`.
    #[schema(example = -0.1, maximum = 0)]
    avg_logprob: f32,
    /// Number of tokens, including the stop token.
    #[schema(example = 3, minimum = 1)]
    token_count: usize,
    /// The model's loss for this text, without label smoothing: the mean of the tokens' negative log-probabilities.
    #[schema(example = 0.1, minimum = 0)]
    loss: f32,
    /// Softmax of `logprob` over the candidates.
    #[schema(example = 0.74, minimum = 0, maximum = 1)]
    probability: f32,
    /// The tokens with their log-probabilities; only with `"tokens": true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<TokenAnswer>, required = false)]
    tokens: Option<Vec<TokenAnswer>>,
}

/// A candidate and its score.
#[derive(Debug)]
pub(crate) struct Ranked {
    pub(crate) text: Arc<str>,
    pub(crate) score: CandidateScore,
}

/// Checks the candidates of a request: there is at least one, there are not too many, all are distinct, and there are no
/// generation parameters. The type `Text` already excludes empty texts.
///
/// # Errors
/// `invalid_request` or `batch_too_large`, naming the field.
pub(crate) fn checked(
    candidates: Vec<Text>,
    generation: &GenerationFields,
    limits: &Limits,
) -> Result<Vec<Arc<str>>, ApiError> {
    if let Some(given) = generation.first_given() {
        return Err(without_effect(given));
    }
    if candidates.is_empty() {
        return Err(ApiError::field(Code::InvalidRequest, "candidates", "at least one is needed"));
    }
    let max = limits.max_candidates;
    check_count("candidates", candidates.len(), max, "limits.max_candidates")?;
    let mut seen = HashSet::new();
    if let Some(index) = candidates.iter().position(|candidate| !seen.insert(candidate)) {
        let detail = "candidates must be distinct; this one is a duplicate";
        return Err(ApiError::field(Code::InvalidRequest, format!("candidates[{index}]"), detail));
    }
    Ok(candidates.into_iter().map(|candidate| candidate.0).collect())
}

/// Returns the error for a field that may not be given together with `candidates`.
pub(crate) fn without_effect(field: &str) -> ApiError {
    let detail = "has no effect with candidates, which are scored, not generated; leave it out";
    ApiError::field(Code::InvalidRequest, field, detail)
}

/// Tokenises the candidates, each at most as long as the model allows.
///
/// # Errors
/// `text_too_long` or `invalid_request`, naming the candidate.
pub(crate) fn tokenize(
    candidates: &[Arc<str>],
    texts: &TextEncoder,
) -> Result<Vec<TokenIds>, ApiError> {
    let max = texts.model().info.text_towers().max_tokens;
    let each = candidates.iter().enumerate().map(|(index, candidate)| {
        let field = format!("candidates[{index}]");
        texts.encode(&field, candidate, max)
    });
    each.collect()
}

/// Ranks the candidates, best first; candidates with equal scores keep their order. The softmax is computed in f64,
/// after subtracting the maximum. `tokenizer` is given if the answer lists the tokens.
///
/// # Errors
/// `inference_failed` if a score is not finite.
pub(crate) fn rank(
    candidates: &[Arc<str>],
    scored: &[ScoredText],
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Ranked>, ApiError> {
    if candidates.len() != scored.len() {
        return Err(wrong_count());
    }
    let logprobs =
        scored.iter().map(|text| finite(text.logprob())).collect::<Result<Vec<f32>, _>>()?;
    let best = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logprob: f32| (f64::from(logprob) - f64::from(best)).exp();
    let total: f64 = logprobs.iter().map(|&logprob| weight(logprob)).sum();
    let ranked = candidates.iter().zip(scored).zip(&logprobs).map(|((text, scored), &logprob)| {
        let token_count = scored.tokens.len();
        let avg_logprob = logprob / token_count.max(1) as f32;
        let score = CandidateScore {
            logprob,
            avg_logprob,
            token_count,
            // Adding zero turns -0 into 0.
            loss: -avg_logprob + 0.0,
            probability: (weight(logprob) / total) as f32,
            tokens: tokenizer.map(|tokenizer| TokenAnswer::list(tokenizer, &scored.tokens)),
        };
        Ranked { text: Arc::clone(text), score }
    });
    let mut ranking: Vec<Ranked> = ranked.collect();
    ranking.sort_by(|a, b| b.score.logprob.total_cmp(&a.score.logprob));
    Ok(ranking)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TokenLogprob;

    fn scored(logprobs: &[f32]) -> ScoredText {
        let token = |&logprob: &f32| TokenLogprob { id: 1, logprob };
        ScoredText { tokens: logprobs.iter().map(token).collect() }
    }

    #[test]
    fn the_ranking_is_best_first_and_its_probabilities_are_the_softmax() {
        let candidates: Vec<Arc<str>> = vec!["no".into(), "yes".into(), "maybe".into()];
        let scores = [scored(&[-1.5, -0.5]), scored(&[-1.0]), scored(&[-1.0, -2.0])];
        let ranking = rank(&candidates, &scores, None).unwrap();
        let order: Vec<&str> = ranking.iter().map(|ranked| &*ranked.text).collect();
        assert_eq!(order, ["yes", "no", "maybe"]);
        for (ranked, expected) in ranking.iter().zip([0.665_240_94, 0.244_728_48, 0.090_030_57]) {
            assert!((ranked.score.probability - expected).abs() < 1e-6, "{ranked:?}");
        }
        let second = &ranking[1].score;
        assert_eq!((second.token_count, second.avg_logprob, second.loss), (2, -1.0, 1.0));
    }

    #[test]
    fn improbable_candidates_keep_a_finite_softmax() {
        let candidates: Vec<Arc<str>> = vec!["a".into(), "b".into()];
        let ranking = rank(&candidates, &[scored(&[-900.0]), scored(&[-901.0])], None).unwrap();
        assert!((ranking[0].score.probability - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn a_score_that_is_no_number_fails_the_question() {
        let candidates: Vec<Arc<str>> = vec!["a".into()];
        let error = rank(&candidates, &[scored(&[f32::NAN])], None).unwrap_err();
        assert_eq!(error.code, Code::InferenceFailed);
    }
}
