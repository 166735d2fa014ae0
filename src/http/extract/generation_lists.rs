//! The types of the generation parameters that are lists: words or strings, and the pair of the exponential decay.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Unexpected, Visitor};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::fields::{Field, Int, Text};
use crate::task::ExponentialDecay;

/// Largest factor of the exponential decay.
const MAX_FACTOR: f64 = 100.0;

/// A list of 1 to `MAX` texts. Clones share the texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Words<const MAX: usize>(pub(crate) Arc<[Arc<str>]>);

impl<const MAX: usize> Field for Words<MAX> {
    const IS_LIST: bool = true;
}

impl<'de, const MAX: usize> Deserialize<'de> for Words<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<Text>::read(deserializer)?;
        if texts.len() > MAX {
            return Err(D::Error::custom(format_args!("at most {MAX} are allowed")));
        }
        Ok(Self(texts.into_iter().map(|text| text.0).collect()))
    }
}

impl<const MAX: usize> PartialSchema for Words<MAX> {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(Text::schema()).min_items(Some(1)).max_items(Some(MAX)).into()
    }
}

impl<const MAX: usize> ToSchema for Words<MAX> {}

/// `exponential_decay_length_penalty`: a list of the start, in generated tokens, and the factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DecayField(pub(crate) ExponentialDecay);

impl Field for DecayField {
    const IS_LIST: bool = true;
}

/// Number of generated tokens up to which the decay has no effect.
type Start = Int<0, 65_536>;

struct DecayVisitor;

impl<'de> Visitor<'de> for DecayVisitor {
    type Value = DecayField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of a start and a factor")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<DecayField, A::Error> {
        let length = |length| A::Error::invalid_length(length, &self);
        let start = items.next_element::<Start>()?.ok_or_else(|| length(0))?.0 as usize;
        let factor = items.next_element::<Factor>()?.ok_or_else(|| length(1))?.0;
        let mut count = 2;
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        if count > 2 {
            return Err(length(count));
        }
        Ok(DecayField(ExponentialDecay { start, factor }))
    }
}

impl<'de> Deserialize<'de> for DecayField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DecayVisitor)
    }
}

impl PartialSchema for DecayField {
    fn schema() -> RefOr<Schema> {
        let number = || ObjectBuilder::new().schema_type(SchemaType::Type(Type::Number));
        let factor = number().exclusive_minimum(Some(0.0)).maximum(Some(MAX_FACTOR));
        let start = match Start::schema() {
            RefOr::T(schema) => schema,
            RefOr::Ref(_) => unreachable!("integers have no schema of their own"),
        };
        ArrayBuilder::new()
            .items(number())
            .prefix_items([start, factor.into()])
            .min_items(Some(2))
            .max_items(Some(2))
            .into()
    }
}

impl ToSchema for DecayField {}

/// The factor of the exponential decay. An `f64`, because powers of it are computed.
struct Factor(f64);

impl Factor {
    fn checked<E: Error>(factor: f64) -> Result<Self, E> {
        if factor > 0.0 && factor <= MAX_FACTOR {
            return Ok(Self(factor));
        }
        Err(E::invalid_value(Unexpected::Float(factor), &FactorVisitor))
    }
}

struct FactorVisitor;

impl Visitor<'_> for FactorVisitor {
    type Value = Factor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number above 0, at most {MAX_FACTOR}")
    }

    fn visit_f64<E: Error>(self, factor: f64) -> Result<Factor, E> {
        Factor::checked(factor)
    }

    fn visit_u64<E: Error>(self, factor: u64) -> Result<Factor, E> {
        Factor::checked(factor as f64)
    }

    fn visit_i64<E: Error>(self, factor: i64) -> Result<Factor, E> {
        Factor::checked(factor as f64)
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(FactorVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decay(json: &str) -> Result<ExponentialDecay, String> {
        let read = serde_json::from_str::<DecayField>(json);
        read.map(|decay| decay.0).map_err(|error| error.to_string())
    }

    #[test]
    fn a_decay_is_a_start_and_a_factor() {
        assert_eq!(decay("[5, 1.1]"), Ok(ExponentialDecay { start: 5, factor: 1.1 }));
        assert_eq!(decay("[0.0, 2]"), Ok(ExponentialDecay { start: 0, factor: 2.0 }));
        let refused = [
            ("[]", "invalid length 0, expected a list of a start and a factor"),
            ("[5]", "invalid length 1"),
            ("[5, 1.1, 2, 3]", "invalid length 4"),
            ("[1.5, 1.1]", "expected an integer from 0 to 65536"),
            ("[5, 0]", "expected a number above 0, at most 100"),
            ("[5, 100.5]", "expected a number above 0, at most 100"),
            ("[5, \"1\"]", "expected a number above 0, at most 100"),
            ("5", "expected a list of a start and a factor"),
        ];
        for (json, words) in refused {
            let error = decay(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
    }

    #[test]
    fn words_are_counted_and_none_may_be_empty() {
        let words = |json: &str| serde_json::from_str::<Words<2>>(json);
        assert_eq!(words("[\"a\", \"b c\"]").unwrap().0.len(), 2);
        let refused = [
            ("[]", "at least one is needed"),
            ("[\"a\", \"b\", \"c\"]", "at most 2 are allowed"),
            ("[\"\"]", "non-empty"),
            ("\"a\"", "expected a list"),
        ];
        for (json, expected) in refused {
            let error = words(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
