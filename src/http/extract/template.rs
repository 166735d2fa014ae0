//! The field type for the template of labels: a text with one place for the label.

use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::fields::{Field, Text, string_schema};

/// The part of a template that the label replaces.
const PLACE: &str = "{}";

/// A [`Text`] that contains `{}` exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Arc<str>);

impl Template {
    /// Creates a template of this server's own.
    pub(crate) fn constant(text: &'static str) -> Self {
        debug_assert_eq!(text.matches(PLACE).count(), 1, "{text}");
        Self(text.into())
    }

    /// Returns the length of the template in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the text with a label in its place.
    pub(crate) fn fill(&self, label: &str) -> String {
        self.0.replace(PLACE, label)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        if text.matches(PLACE).count() != 1 {
            return Err(D::Error::custom("must contain {} exactly once; the label replaces it"));
        }
        Ok(Self(text))
    }
}

impl PartialSchema for Template {
    /// The pattern is that of a text, with one `{}` in it.
    fn schema() -> RefOr<Schema> {
        const PATTERN: &str = concat!(
            r"^(?:(?!\{\})[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f])*\{\}",
            r"(?:(?!\{\})[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f])*$",
        );
        string_schema().min_length(Some(1)).pattern(Some(PATTERN)).into()
    }
}

impl ToSchema for Template {}

impl Field for Template {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_place() {
        let template = |text: &str| serde_json::from_value::<Template>(text.into());
        for good in ["{}", "a photo of {}", "{{}", "{}}", "{ {}", "{}\n"] {
            assert!(template(good).is_ok(), "{good}");
        }
        for wrong in ["", "no place", "{} {}", "{}{}", "{ }", "{}\u{0}"] {
            assert!(template(wrong).is_err(), "{wrong}");
        }
        assert_eq!(template("a {} b").unwrap().fill("{} c"), "a {} c b");
    }
}
