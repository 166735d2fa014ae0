//! Helpers for the text fields of the endpoints: tokenization with errors that name the field ([`TextEncoder`]), errors for
//! missing fields, pairs of fields of which exactly one must be given (such as `text` and `texts`), and the token ids of a
//! prompt.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::http::error::{ApiError, Code};
use crate::http::state::models::Model;
use crate::input::{InputError, Tokenizer};
use crate::task::TokenIds;

/// Tokenises the texts of a call. A text that several inputs share is tokenised once.
///
/// The work can be divided into slices: when a slice has tokenised enough, [`encode`](Self::encode) fails until the next one
/// [begins](Self::begin_slice). The input that was interrupted is then tokenised again, and finds its first texts done.
pub(crate) struct TextEncoder {
    model: Model,
    /// The tokens of each text, without a limit on their number.
    done: RefCell<HashMap<String, Result<TokenIds, InputError>>>,
    /// Number of bytes that this slice may still tokenise. The last text may exceed it.
    left: Cell<usize>,
    is_interrupted: Cell<bool>,
}

impl TextEncoder {
    /// Creates an encoder that is not interrupted.
    pub(crate) fn new(model: Model) -> Self {
        let (left, is_interrupted) = (Cell::new(usize::MAX), Cell::new(false));
        Self { model, done: RefCell::default(), left, is_interrupted }
    }

    /// Begins a slice that ends after about `bytes` bytes of text.
    pub(crate) fn begin_slice(&self, bytes: usize) {
        self.left.set(bytes.max(1));
        self.is_interrupted.set(false);
    }

    /// True if the slice has ended before a text could be tokenised.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.is_interrupted.get()
    }

    /// Returns the model whose tokenizer is used.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Tokenizes `text` as `[CLS] text [SEP]`, at most `max_tokens` tokens in all.
    ///
    /// # Errors
    /// `text_too_long` or `invalid_request`, naming `field`.
    pub(crate) fn encode(
        &self,
        field: &str,
        text: &str,
        max_tokens: usize,
    ) -> Result<TokenIds, ApiError> {
        let ids = self.ids(text)?.and_then(|ids| Tokenizer::within(ids, max_tokens));
        ids.map_err(|error| ApiError::from(error).at(field))
    }

    /// Like [`encode`](Self::encode), but drops tokens before `[SEP]` until at most `max_tokens` remain.
    ///
    /// # Errors
    /// `text_too_long` or `invalid_request`, naming `field`.
    pub(crate) fn encode_truncated(
        &self,
        field: &str,
        text: &str,
        max_tokens: usize,
    ) -> Result<TokenIds, ApiError> {
        let tokenizer = self.model.tokenizer();
        let ids = self.ids(text)?.map(|ids| tokenizer.truncated(ids, max_tokens));
        ids.map_err(|error| ApiError::from(error).at(field))
    }

    /// Returns the tokens of a text.
    ///
    /// # Errors
    /// Any, if the slice has ended.
    fn ids(&self, text: &str) -> Result<Result<TokenIds, InputError>, ApiError> {
        if let Some(ids) = self.done.borrow().get(text) {
            return Ok(ids.clone());
        }
        if self.left.get() == 0 {
            self.is_interrupted.set(true);
            return Err(ApiError::internal());
        }
        self.left.set(self.left.get().saturating_sub(text.len()));
        let ids = self.model.tokenizer().encode(text);
        self.done.borrow_mut().insert(text.to_owned(), ids.clone());
        Ok(ids)
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::engine::testing::fake;
    use crate::input::InputSettings;

    fn encoder() -> TextEncoder {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/retrieval");
        let tokenizer = Tokenizer::load(&checkpoint, &InputSettings::default()).unwrap();
        let info = fake::models().swap_remove(2);
        TextEncoder::new(Model { info, tokenizer: Some(Arc::new(tokenizer)) })
    }

    #[test]
    fn a_text_that_occurs_again_is_not_tokenised_again() {
        let texts = encoder();
        texts.begin_slice(1);
        let whole = texts.encode("a", "a man with a hat", 512).unwrap();
        // Nothing is left for another text.
        assert_eq!(texts.encode("b", "a man with a hat", 512).unwrap(), whole);
        let cut = texts.encode_truncated("c", "a man with a hat", 4).unwrap();
        assert_eq!(cut.as_slice()[..3], whole.as_slice()[..3]);
        let refused = texts.encode("d", "a man with a hat", 4).unwrap_err();
        assert_eq!((refused.code, &*refused.errors[0].field), (Code::TextTooLong, "d"));
        assert!(!texts.is_interrupted());
    }

    #[test]
    fn a_slice_ends_before_the_text_that_exceeds_it_and_the_next_one_continues() {
        let texts = encoder();
        let encode_all =
            || ["one", "two", "three"].map(|text| texts.encode("a", text, 512).is_ok());
        texts.begin_slice(6);
        assert_eq!((encode_all(), texts.is_interrupted()), ([true, true, false], true));
        texts.begin_slice(6);
        assert_eq!((encode_all(), texts.is_interrupted()), ([true, true, true], false));
        assert_eq!(texts.done.borrow().len(), 3);
    }
}
