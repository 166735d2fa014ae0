//! Generated sequences as captions and answers tell of them.

use serde::Serialize;
use utoipa::ToSchema;

use super::convert::inference_failed;
use super::error::ApiError;
use crate::task::{FinishReason, Sequence};

/// How sure the model was of a text, and why it ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct SequenceFacts {
    /// Generated tokens, the stop token included.
    #[schema(example = 7, minimum = 1)]
    token_count: usize,
    /// `stop`: the model ended the text. `length`: `max_new_tokens` did.
    finish_reason: FinishReasonName,
    /// Sum of the tokens' natural log-probabilities under the unmodified distribution.
    #[schema(example = -0.84, maximum = 0)]
    logprob: f32,
    /// `logprob / token_count`.
    #[schema(example = -0.12, maximum = 0)]
    avg_logprob: f32,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FinishReasonName {
    /// The model's stop token.
    Stop,
    /// `max_new_tokens`.
    Length,
}

impl SequenceFacts {
    /// The facts of a sequence.
    ///
    /// # Errors
    /// `inference_failed` when its log-probability is no number.
    pub(crate) fn of(sequence: &Sequence) -> Result<Self, ApiError> {
        let logprob = finite(sequence.logprob())?;
        let token_count = sequence.tokens.len();
        Ok(Self {
            token_count,
            finish_reason: match sequence.finish_reason {
                FinishReason::Stop => FinishReasonName::Stop,
                FinishReason::Length => FinishReasonName::Length,
            },
            logprob,
            avg_logprob: logprob / token_count.max(1) as f32,
        })
    }
}

/// The number itself. JSON has no NaN and no infinity, and a model that gives them has failed.
///
/// # Errors
/// `inference_failed`.
pub(crate) fn finite(number: f32) -> Result<f32, ApiError> {
    if number.is_finite() {
        return Ok(number);
    }
    tracing::error!(%number, "the model gave a number that is not finite");
    Err(inference_failed())
}

/// The output is of another task than was asked: an invariant of the engine is broken.
pub(crate) fn wrong_output() -> ApiError {
    tracing::error!("the engine answered another task than was asked");
    ApiError::internal()
}
