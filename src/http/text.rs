//! Texts to ids with errors that name the field, and what generated texts begin with.

use super::error::{ApiError, Code};
use super::models::Model;
use crate::task::TokenIds;

/// `[CLS] text [SEP]`, of at most `max_tokens`.
///
/// # Errors
/// `text_too_long`, `invalid_request`.
pub(crate) fn encode(
    model: &Model,
    field: &str,
    text: &str,
    max_tokens: usize,
) -> Result<TokenIds, ApiError> {
    model.tokenizer.encode_within(text, max_tokens).map_err(|error| ApiError::from(error).at(field))
}

/// A field that must be given.
pub(crate) fn needed(field: &str) -> ApiError {
    ApiError::field(Code::InvalidRequest, field, "is needed")
}

/// The ids of a prompt's text: without `[CLS]` and `[SEP]`.
pub(crate) fn prompt_ids(prompt: Option<&TokenIds>) -> &[u32] {
    let ids = prompt.map_or(&[][..], TokenIds::as_slice);
    ids.get(1..ids.len().saturating_sub(1)).unwrap_or_default()
}

/// One of a pair of fields that mean the same, singular and plural, as a list.
///
/// # Errors
/// `invalid_request` when both are given, none is, or the list is empty.
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
