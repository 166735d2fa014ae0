//! Helpers for the text fields of the endpoints: tokenization with errors that name the field, errors for missing
//! fields, pairs of fields of which exactly one must be given (such as `text` and `texts`), and the token ids of a
//! prompt.

use crate::http::error::{ApiError, Code};
use crate::http::state::models::Model;
use crate::task::TokenIds;

/// Tokenizes `text` as `[CLS] text [SEP]`, at most `max_tokens` tokens in all.
///
/// # Errors
/// `text_too_long` or `invalid_request`, naming `field`.
pub(crate) fn encode(
    model: &Model,
    field: &str,
    text: &str,
    max_tokens: usize,
) -> Result<TokenIds, ApiError> {
    model
        .tokenizer()
        .encode_within(text, max_tokens)
        .map_err(|error| ApiError::from(error).at(field))
}

/// Returns the error for a required field that is missing.
pub(crate) fn needed(field: &str) -> ApiError {
    ApiError::field(Code::InvalidRequest, field, "is needed")
}

/// Returns the token ids of a prompt without its `[CLS]` and `[SEP]`; empty if there is no prompt.
pub(crate) fn prompt_ids(prompt: Option<&TokenIds>) -> &[u32] {
    let ids = prompt.map_or(&[][..], TokenIds::as_slice);
    ids.get(1..ids.len().saturating_sub(1)).unwrap_or_default()
}

/// Returns the values of two alternative fields, such as `text` and `texts`, as one list.
///
/// # Errors
/// `invalid_request` if both fields are given, if neither is given, or if the list is empty.
pub(crate) fn one_or_many<T>(
    singular: (&str, Option<T>),
    plural: (&str, Option<Vec<T>>),
) -> Result<Vec<T>, ApiError> {
    match (singular.1, plural.1) {
        (Some(one), None) => Ok(vec![one]),
        (None, Some(many)) if !many.is_empty() => Ok(many),
        (None, Some(_)) => {
            Err(ApiError::field(Code::InvalidRequest, plural.0, "at least one is needed"))
        }
        (None, None) => {
            let detail = format!("{} or {} is needed", singular.0, plural.0);
            Err(ApiError::field(Code::InvalidRequest, singular.0, detail))
        }
        (Some(_), Some(_)) => {
            let detail = format!("give {} or {}, not both", singular.0, plural.0);
            Err(ApiError::field(Code::InvalidRequest, singular.0, detail))
        }
    }
}
