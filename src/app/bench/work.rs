//! The kinds of work that `bench` measures, and which model classes support them.

use std::fmt;
use std::str::FromStr;

use crate::task::ModelClass;

/// A kind of work. It runs once for each item of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Encode an image with the vision tower.
    Vision,
    /// Caption an image: encode it, then decode token by token.
    Caption,
    /// Caption an image whose features are already cached.
    CaptionKnown,
    /// Answer a question about an image: encode both, then decode token by token.
    Vqa,
    /// Match an image with a text: encode the image, then run the text in one pass.
    Match,
    /// Embed an image in the shared space.
    EmbedImage,
    /// Embed a text in the shared space.
    EmbedText,
}

impl Work {
    /// All kinds of work, in the order of the report.
    pub const ALL: [Self; 7] = [
        Self::Vision,
        Self::Caption,
        Self::CaptionKnown,
        Self::Vqa,
        Self::Match,
        Self::EmbedImage,
        Self::EmbedText,
    ];

    /// Returns the name, as `--task` spells it.
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

    /// True if this work generates tokens.
    #[must_use]
    pub fn generates(self) -> bool {
        matches!(self, Self::Caption | Self::CaptionKnown | Self::Vqa)
    }

    /// True if models of this class support this work.
    #[must_use]
    pub fn is_done_by(self, class: ModelClass) -> bool {
        match self {
            Self::Vision => class != ModelClass::Text,
            Self::Caption | Self::CaptionKnown => class == ModelClass::ConditionalGeneration,
            Self::Vqa => class == ModelClass::QuestionAnswering,
            Self::Match => class.has_matching_head(),
            Self::EmbedImage | Self::EmbedText => class.has_projection(),
        }
    }

    /// Lists the names of `works`, separated by commas, for a message.
    pub(super) fn names<'a>(works: impl Iterator<Item = &'a Self>) -> String {
        works.map(|work| work.name()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Error for a text that names no kind of work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", Work::names(Work::ALL.iter()))]
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
