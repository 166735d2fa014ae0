//! Whose fault a failed start is: that of a checkpoint's files, or that of the machine and the network.

use std::error::Error;

use crate::document::DocumentError;
use crate::hub::HubError;
use crate::input::TokenizerError;
use crate::model::LoadError;

/// A tokenizer of another model gives ids that mean something else, or that the tables do not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum VocabularyMismatch {
    /// Ids beyond the embedding table.
    #[error(
        "the tokenizer has {tokens} tokens, text_config.vocab_size of config.json is {vocab_size}: \
         they belong to different models; copy both from one checkpoint"
    )]
    Size { tokens: usize, vocab_size: usize },
    /// Another stop token.
    #[error(
        "the tokenizer's separator token has the id {separator}, text_config.sep_token_id of config.json is \
         {sep_token_id}: they belong to different models; copy both from one checkpoint"
    )]
    Separator { separator: u32, sep_token_id: u32 },
}

/// True where the content of a checkpoint, or what names it, is why something failed: trying again cannot help.
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
    fn content_is_told_from_a_disk_that_fails_through_layers_of_context() {
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
