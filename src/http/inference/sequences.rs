//! How answers describe generated sequences, and checks on the model's output.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::error::convert::inference_failed;
use crate::input::Tokenizer;
use crate::task::{FinishReason, Sequence, TokenLogprob};

/// Length and probability of a generated text, and why it ended.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct SequenceFacts {
    /// Number of generated tokens, including the stop token.
    #[schema(example = 7, minimum = 1)]
    token_count: usize,
    /// `stop`: the model ended the text, or a stop string did. `length`: it reached `max_new_tokens`.
    finish_reason: FinishReasonName,
    /// Sum of the tokens' natural log-probabilities under the unmodified distribution.
    #[schema(example = -0.84, maximum = 0)]
    logprob: f32,
    /// `logprob` divided by `token_count`.
    #[schema(example = -0.12, maximum = 0)]
    avg_logprob: f32,
    /// The generated tokens with their log-probabilities; only with `"tokens": true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<TokenAnswer>, required = false)]
    tokens: Option<Vec<TokenAnswer>>,
}

/// A token of a text, and its probability.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct TokenAnswer {
    /// Token id in the model's vocabulary.
    #[schema(example = 8870)]
    pub(crate) id: u32,
    /// The token as the vocabulary spells it, such as `cats`, `##s` or `[SEP]`; empty if it has no spelling.
    #[schema(example = "cats")]
    pub(crate) text: String,
    /// Natural log-probability of the token after the tokens before it.
    #[schema(example = -0.12, maximum = 0)]
    pub(crate) logprob: f32,
}

impl TokenAnswer {
    /// Describes the tokens of a text, in order.
    pub(crate) fn list(tokenizer: &Tokenizer, tokens: &[TokenLogprob]) -> Vec<Self> {
        let answer = |&TokenLogprob { id, logprob }: &TokenLogprob| {
            let text = tokenizer.token(id).unwrap_or_default();
            Self { id, text, logprob }
        };
        tokens.iter().map(answer).collect()
    }
}

/// Why the generation of a text ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FinishReasonName {
    /// The model generated its stop token, or the text contains a stop string.
    Stop,
    /// The text reached `max_new_tokens` tokens.
    Length,
}

/// A generated text, for the answers of other APIs.
#[derive(Debug, Clone)]
pub(crate) struct GeneratedText {
    /// The text; of a caption with its prompt.
    pub(crate) text: String,
    /// Number of generated tokens, including the stop token.
    pub(crate) token_count: usize,
    /// False if the text reached the limit on new tokens.
    pub(crate) is_finished: bool,
    /// Natural log-probability of the whole text.
    pub(crate) logprob: f32,
    /// The generated tokens; `None` unless the request asks for them.
    pub(crate) tokens: Option<Vec<TokenAnswer>>,
}

impl SequenceFacts {
    /// Combines these facts with the text that they describe.
    pub(crate) fn into_text(self, text: String) -> GeneratedText {
        GeneratedText {
            text,
            token_count: self.token_count,
            is_finished: matches!(self.finish_reason, FinishReasonName::Stop),
            logprob: self.logprob,
            tokens: self.tokens,
        }
    }

    /// Describes a generated sequence. `tokenizer` is given if the answer lists the tokens.
    ///
    /// # Errors
    /// `inference_failed` when its log-probability is not finite.
    pub(crate) fn of(sequence: &Sequence, tokenizer: Option<&Tokenizer>) -> Result<Self, ApiError> {
        let logprob = finite(sequence.logprob())?;
        let token_count = sequence.tokens.len();
        Ok(Self {
            token_count,
            finish_reason: match sequence.finish_reason {
                FinishReason::Stop | FinishReason::StopString => FinishReasonName::Stop,
                FinishReason::Length => FinishReasonName::Length,
            },
            logprob,
            avg_logprob: logprob / token_count.max(1) as f32,
            tokens: tokenizer.map(|tokenizer| TokenAnswer::list(tokenizer, &sequence.tokens)),
        })
    }
}

/// Checks that a number is finite. JSON has no NaN and no infinity, and a model that returns them has failed.
///
/// # Errors
/// `inference_failed`.
pub(crate) fn finite(number: f32) -> Result<f32, ApiError> {
    if number.is_finite() {
        return Ok(number);
    }
    tracing::error!(%number, "the model returned a value that is not finite");
    Err(inference_failed())
}

/// Logs and returns the error for an engine output with too few or too many values, which breaks an invariant of the
/// engine.
pub(crate) fn wrong_count() -> ApiError {
    tracing::error!("the engine returned the wrong number of values");
    ApiError::internal()
}
