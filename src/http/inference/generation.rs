//! The generation parameters of a validated input. `extract::generation` has checked them; here the parameters that
//! consist of words get the tokens of the model.

use std::sync::Arc;

use super::text::{self, TextEncoder};
use crate::http::error::{ApiError, Code};
use crate::http::extract::generation::GenerationFields;
use crate::http::settings::Limits;
use crate::http::state::models::Model;
use crate::task::{GenerationParams, StopStrings};

/// Size that stop strings count as in [`GenerationPlan::text_bytes`]. It is above every size that is tokenized on an
/// async thread, because the first request with stop strings builds the table of token texts: 142 ms for 30,516 tokens in
/// an unoptimised build on a busy machine (2 cores, 2026-11-30).
const TABLE_BYTES: usize = 64 << 10;

/// Validated generation parameters whose words have not been tokenized yet. Clones share the words.
#[derive(Debug, Clone)]
pub(crate) struct GenerationPlan {
    /// The parameters without `bad_words` and `stop_strings`.
    pub(crate) params: GenerationParams,
    bad_words: Option<Arc<[Arc<str>]>>,
    stop_strings: Option<Arc<[Arc<str>]>>,
}

impl GenerationPlan {
    /// Validates the parameters that a client has sent.
    ///
    /// # Errors
    /// Same as for [`GenerationFields::to_params`].
    pub(crate) fn new(
        fields: GenerationFields,
        limits: &Limits,
        model: &Model,
    ) -> Result<Self, ApiError> {
        let params = fields.to_params(limits, model.info.text_towers().max_tokens)?;
        let bad_words = fields.bad_words.map(|words| words.0);
        let stop_strings = fields.stop_strings.map(|strings| strings.0);
        Ok(Self { params, bad_words, stop_strings })
    }

    /// Returns the total size of the texts to tokenize in bytes, and more if there are stop strings.
    pub(crate) fn text_bytes(&self) -> usize {
        let words = self.bad_words.iter().flat_map(|words| words.iter());
        let table = if self.stop_strings.is_some() { TABLE_BYTES } else { 0 };
        words.map(|word| word.len()).sum::<usize>() + table
    }

    /// Returns the complete parameters, with the tokens of `bad_words` and with `stop_strings`.
    ///
    /// # Errors
    /// `text_too_long` or `invalid_request`, naming the word.
    pub(crate) fn tokenize(&self, texts: &TextEncoder) -> Result<GenerationParams, ApiError> {
        let words = self.bad_words.as_ref().map(|words| {
            let words = words.iter().enumerate();
            words.map(|(index, word)| word_ids(texts, index, word)).collect::<Result<_, _>>()
        });
        let stop_strings = self.stop_strings.as_ref().map(|strings| {
            StopStrings::new(Arc::clone(strings), texts.model().tokenizer().token_texts())
        });
        Ok(GenerationParams { bad_words: words.transpose()?, stop_strings, ..self.params.clone() })
    }
}

/// Returns the tokens of a bad word, without `[CLS]` and `[SEP]`: a generated text never contains those.
fn word_ids(texts: &TextEncoder, index: usize, word: &str) -> Result<Box<[u32]>, ApiError> {
    let field = format!("bad_words[{index}]");
    let ids = texts.encode(&field, word, texts.model().info.text_towers().max_tokens)?;
    let ids = text::prompt_ids(Some(&ids));
    if ids.is_empty() {
        let detail = "consists of characters that the tokenizer ignores; leave it out";
        return Err(ApiError::field(Code::InvalidRequest, field, detail));
    }
    Ok(ids.into())
}
