//! The types of request fields that are a flag or a word.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::fields::{Field, Text, string_schema};

impl Field for EarlyStoppingField {}
impl Field for VerifyField {}

/// `early_stopping`: `true`, `false` or `"never"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EarlyStoppingField {
    Flag(bool),
    /// The string `"never"`.
    Never,
}

struct EarlyStoppingVisitor;

impl Visitor<'_> for EarlyStoppingVisitor {
    type Value = EarlyStoppingField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or \"never\"")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<EarlyStoppingField, E> {
        Ok(EarlyStoppingField::Flag(flag))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<EarlyStoppingField, E> {
        if text == "never" {
            return Ok(EarlyStoppingField::Never);
        }
        Err(E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for EarlyStoppingField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EarlyStoppingVisitor)
    }
}

impl PartialSchema for EarlyStoppingField {
    fn schema() -> RefOr<Schema> {
        let flag = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Boolean));
        let never = string_schema().enum_values(Some(["never"]));
        OneOfBuilder::new().item(flag).item(never).into()
    }
}

impl ToSchema for EarlyStoppingField {}

/// `verify`: `true`, `false`, or the name of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VerifyField {
    Flag(bool),
    Model(Text),
}

struct VerifyVisitor;

impl Visitor<'_> for VerifyVisitor {
    type Value = VerifyField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false or the name of a model")
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<VerifyField, E> {
        Ok(VerifyField::Flag(flag))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<VerifyField, E> {
        let name = serde::de::IntoDeserializer::into_deserializer(name);
        Text::deserialize(name).map(VerifyField::Model)
    }
}

impl<'de> Deserialize<'de> for VerifyField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VerifyVisitor)
    }
}

impl PartialSchema for VerifyField {
    fn schema() -> RefOr<Schema> {
        let flag = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Boolean));
        OneOfBuilder::new().item(flag).item(Text::schema()).into()
    }
}

impl ToSchema for VerifyField {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_stopping_is_a_flag_or_never() {
        assert_eq!(
            serde_json::from_str::<EarlyStoppingField>("true").unwrap(),
            EarlyStoppingField::Flag(true)
        );
        assert_eq!(
            serde_json::from_str::<EarlyStoppingField>("\"never\"").unwrap(),
            EarlyStoppingField::Never
        );
        let error = serde_json::from_str::<EarlyStoppingField>("\"true\"").unwrap_err().to_string();
        assert!(error.contains("true, false or \"never\""), "{error}");
    }
}
