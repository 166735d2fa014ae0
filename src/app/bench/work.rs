//! The kinds of work that are measured.

use std::fmt;
use std::str::FromStr;

use crate::task::ModelClass;

/// What one item of a batch asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// An image through its tower.
    Vision,
    /// A caption of an image: its tower, then token by token.
    Caption,
    /// A caption of an image whose features are there.
    CaptionKnown,
    /// An answer to a question about an image: tower, question, then token by token.
    Vqa,
    /// Does this text describe this image? Tower and one pass of the text.
    Match,
    /// An image's vector.
    EmbedImage,
    /// A text's vector.
    EmbedText,
}

impl Work {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Vision,
        Self::Caption,
        Self::CaptionKnown,
        Self::Vqa,
        Self::Match,
        Self::EmbedImage,
        Self::EmbedText,
    ];

    /// As `--task` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Caption => "caption",
            Self::CaptionKnown => "caption-known",
            Self::Vqa => "vqa",
            Self::Match => "match",
            Self::EmbedImage => "embed-image",
            Self::EmbedText => "embed-text",
        }
    }

    /// True where tokens are generated.
    #[must_use]
    pub fn generates(self) -> bool {
        matches!(self, Self::Caption | Self::CaptionKnown | Self::Vqa)
    }

    /// True for models of this class.
    #[must_use]
    pub fn is_done_by(self, class: ModelClass) -> bool {
        match self {
            Self::Vision => true,
            Self::Caption | Self::CaptionKnown => class == ModelClass::ConditionalGeneration,
            Self::Vqa => class == ModelClass::QuestionAnswering,
            Self::Match => class.has_matching_head(),
            Self::EmbedImage | Self::EmbedText => {
                matches!(class, ModelClass::ImageTextRetrieval | ModelClass::Base)
            }
        }
    }

    /// The names, for a message.
    pub(super) fn names<'a>(works: impl Iterator<Item = &'a Self>) -> String {
        works.map(|work| work.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text names no kind of work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("accepted: {}", Work::names(Work::ALL.iter()))]
pub struct UnknownWork;

impl FromStr for Work {
    type Err = UnknownWork;

    fn from_str(text: &str) -> Result<Self, UnknownWork> {
        Self::ALL.into_iter().find(|work| work.name() == text).ok_or(UnknownWork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_by_its_name_and_done_by_some_class() {
        for work in Work::ALL {
            assert_eq!(work.name().parse(), Ok(work));
            assert!(ModelClass::ALL.into_iter().any(|class| work.is_done_by(class)), "{work}");
        }
        let error = "captions".parse::<Work>().unwrap_err().to_string();
        assert!(Work::ALL.into_iter().all(|work| error.contains(work.name())), "{error}");
    }
}
