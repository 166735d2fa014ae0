//! Decides whether a failed start is the fault of a checkpoint, or of the machine or the network. `cli` chooses the
//! exit code accordingly.

use std::error::Error;

use crate::document::DocumentError;
use crate::hub::HubError;
use crate::input::TokenizerError;
use crate::model::LoadError;

/// The tokenizer belongs to another model: its ids have other meanings, or lie outside the embedding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum VocabularyMismatch {
    /// The tokenizer has ids beyond the embedding table.
    #[error(
        "the tokenizer has {tokens} tokens, but text_config.vocab_size in config.json is {vocab_size}: \
         they belong to different models; copy both from the same checkpoint"
    )]
    Size { tokens: usize, vocab_size: usize },
    #[error(
        "the tokenizer's separator token has the id {separator}, but text_config.sep_token_id in config.json is \
         {sep_token_id}: they belong to different models; copy both from the same checkpoint"
    )]
    Separator { separator: u32, sep_token_id: u32 },
}

/// True if the content of a checkpoint, or the setting that names it, caused the error, so that a retry cannot help.
/// The first error of a known type in the chain of causes decides.
#[must_use]
pub fn is_checkpoint_fault(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_content = [
            error.downcast_ref::<DocumentError>().map(DocumentError::is_content),
            error.downcast_ref::<LoadError>().map(LoadError::is_content),
            error.downcast_ref::<HubError>().map(HubError::is_content),
            error.downcast_ref::<TokenizerError>().map(TokenizerError::is_content),
            error.downcast_ref::<VocabularyMismatch>().map(|_| true),
        ];
        if let Some(is_content) = of_content.into_iter().flatten().next() {
            return is_content;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use std::path::PathBuf;

    #[test]
    fn a_content_error_is_distinguished_from_a_failing_disk_through_layers_of_context() {
        let path = || PathBuf::from("config.json");
        let source = std::io::Error::other("disk full");
        let cases = [
            (LoadError::from(DocumentError::Empty { path: path() }), true),
            (LoadError::from(DocumentError::Read { path: path(), source }), false),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            let error = Err::<(), _>(error).context("inner").context("outer").unwrap_err();
            assert_eq!(is_checkpoint_fault(&*error.into_boxed_dyn_error()), expected, "{text}");
        }
        assert!(!is_checkpoint_fault(&std::io::Error::other("no port")));
    }
}
