//! The limits of one call. `/info` shows them, and the OpenAPI documents contain them.

use serde::{Deserialize, Serialize};

use super::AT_LEAST_ONE;
use crate::settings::{InvalidSetting, Section, require};

/// Maximum length that a setting may allow for a list in a request. Items beyond this number are dropped during
/// parsing.
pub(crate) const MAX_LISTED: usize = 1024;

/// Limits of one call: the section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Maximum size of a request body in bytes, in any encoding.
    pub max_body_bytes: u64,
    /// Maximum number of images in a single call.
    pub max_images: usize,
    /// Maximum number of texts in a single call.
    pub max_texts: usize,
    /// Maximum number of questions in a single call.
    pub max_questions: usize,
    /// Maximum number of candidates in a single call.
    pub max_candidates: usize,
    /// Maximum number of images or texts that a single call ranks. `max_images` and `max_texts` do not apply to it.
    pub max_rank_candidates: usize,
    /// Maximum number of inputs in a batch call.
    pub max_batch_inputs: usize,
    /// Maximum number of rows of one call. Depending on the call, a row is one beam or sample of a text to generate,
    /// one candidate of a caption or question, one image-text pair (if the `match` score is requested), or one text.
    pub max_rows: usize,
    /// Largest `max_new_tokens` that a call may request.
    pub max_new_tokens: usize,
    /// Maximum count of numbers in one answer that returns the states of all tokens, attention weights or tokens (each
    /// counts as three).
    pub max_embedding_values: usize,
    /// Maximum number of data frames of a request body. A limit on bytes is not enough, because a 1-byte frame costs
    /// far more memory than its data.
    pub max_body_frames: usize,
    /// Maximum number of text parts in a multipart body, and of fields in a query string.
    pub max_text_parts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_images: 16,
            max_texts: 128,
            max_questions: 16,
            max_candidates: 128,
            max_rank_candidates: 256,
            max_batch_inputs: 64,
            max_rows: 256,
            max_new_tokens: 64,
            max_embedding_values: 2_000_000,
            max_body_frames: 65_536,
            max_text_parts: 256,
        }
    }
}

impl Section for Limits {
    const NAME: &'static str = "limits";

    /// Checks that no limit is 0, and that no list may be longer than `MAX_LISTED`: further items are dropped during
    /// parsing, so a higher limit would have no effect.
    fn check(&self) -> Result<(), InvalidSetting> {
        let lists = [
            ("max_images", self.max_images),
            ("max_texts", self.max_texts),
            ("max_questions", self.max_questions),
            ("max_candidates", self.max_candidates),
            ("max_rank_candidates", self.max_rank_candidates),
            ("max_batch_inputs", self.max_batch_inputs),
        ];
        let others = [
            ("max_rows", self.max_rows),
            ("max_new_tokens", self.max_new_tokens),
            ("max_embedding_values", self.max_embedding_values),
            ("max_body_frames", self.max_body_frames),
            ("max_text_parts", self.max_text_parts),
        ];
        require(self.max_body_bytes > 0, "max_body_bytes", self.max_body_bytes, AT_LEAST_ONE)?;
        for (key, count) in lists.into_iter().chain(others) {
            require(count > 0, key, count, AT_LEAST_ONE)?;
        }
        for (key, count) in lists {
            require(count <= MAX_LISTED, key, count, "an integer from 1 to 1024")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_zero_is_refused_by_name() {
        let limits = Limits { max_rows: 0, ..Limits::default() };
        assert_eq!(limits.check().unwrap_err().key, "max_rows");
    }

    #[test]
    fn a_list_may_not_be_longer_than_what_is_kept_of_it() {
        assert_eq!(MAX_LISTED, 1024, "the words of the error");
        let limits = |max_texts| Limits { max_texts, ..Limits::default() };
        assert_eq!(limits(MAX_LISTED).check(), Ok(()));
        let refused = limits(MAX_LISTED + 1).check().unwrap_err();
        assert_eq!((refused.key, &*refused.value), ("max_texts", "1025"));
    }
}
