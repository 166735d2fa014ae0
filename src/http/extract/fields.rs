//! The types of request fields. Each type defines which values it accepts, names them in errors, and provides its own
//! JSON Schema.
//!
//! A field holds the value that the client sent. The endpoints and `generation` interpret it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::http::settings::MAX_LISTED;
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Deserializes an optional field. `null` in JSON and an empty value in a form mean that the field is absent.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Field>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(PresentVisitor(PhantomData))
}

struct PresentVisitor<T>(PhantomData<T>);

impl<'de, T: Field> Visitor<'de> for PresentVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or null")
    }

    fn visit_none<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<Option<T>, D::Error> {
        T::read(value).map(Some)
    }
}

/// A type that request fields may have. A value of such a type must use bounded memory.
pub(crate) trait Field: DeserializeOwned {
    /// True for lists.
    const IS_LIST: bool = false;

    /// Deserializes a value that is present. Lists override this method to bound the number of their items.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl Field for bool {}
impl<const MIN: u64, const MAX: u64> Field for Int<MIN, MAX> {}
impl Field for Text {}

impl<T: DeserializeOwned> Field for Vec<T> {
    const IS_LIST: bool = true;

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let BoundedList(list) = BoundedList::deserialize(deserializer)?;
        if list.is_empty() {
            return Err(D::Error::custom("at least one is needed"));
        }
        Ok(list)
    }
}

/// A `T` that can be deserialized only from a JSON object. The code that serde derives for a struct would also accept a
/// list of the field values in order.
pub(crate) struct FromObject<T>(pub(crate) T);

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = FromObject<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(FromObject)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for FromObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A list of at most [`MAX_LISTED`] + 1 items. Further items are parsed but not stored, because an item of three bytes
/// in JSON can occupy hundreds of bytes in memory. The one item above the limit makes the later check of the length
/// fail.
struct BoundedList<T>(Vec<T>);

struct BoundedListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedListVisitor<T> {
    type Value = BoundedList<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while list.len() <= MAX_LISTED {
            let Some(item) = items.next_element()? else { return Ok(BoundedList(list)) };
            list.push(item);
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(BoundedList(list))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for BoundedList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedListVisitor(PhantomData))
    }
}

/// Deserializes a list of objects, with the bound of [`BoundedList`]. Reports `null` as a missing field.
pub(crate) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    // `deserialize_seq` would reject `null` before the visitor sees it.
    deserializer.deserialize_any(ObjectsVisitor(PhantomData))
}

struct ObjectsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectsVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Vec<T>, A::Error> {
        let list = BoundedListVisitor::<FromObject<T>>(PhantomData);
        let BoundedList(objects) = list.visit_seq(items)?;
        Ok(objects.into_iter().map(|object| object.0).collect())
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Err(E::custom("is needed"))
    }
}

/// An integer in `MIN..=MAX`. `4.0` counts as the integer 4, as in JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Int<const MIN: u64, const MAX: u64>(pub(crate) u64);

struct IntVisitor<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Visitor<'_> for IntVisitor<MIN, MAX> {
    type Value = Int<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from {MIN} to {MAX}")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        if (MIN..=MAX).contains(&value) {
            return Ok(Int(value));
        }
        Err(E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    #[expect(clippy::cast_sign_loss, reason = "the value has just been compared with zero")]
    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        // Every integer that a field accepts is below 2^53, so a double holds it exactly.
        if value.fract() == 0.0 && value >= 0.0 && value <= MAX as f64 {
            return self.visit_u64(value as u64);
        }
        Err(E::invalid_value(Unexpected::Float(value), &self))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Int<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(IntVisitor)
    }
}

impl<const MIN: u64, const MAX: u64> PartialSchema for Int<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::Integer))
            .minimum(Some(MIN as f64))
            .maximum(Some(MAX as f64));
        object.into()
    }
}

impl<const MIN: u64, const MAX: u64> ToSchema for Int<MIN, MAX> {}

/// Converts to the nearest `f32`, except that a number above 0 stays above 0. The caller has already checked the range
/// of the `f64`; rounding a tiny number to 0 could move it out of that range.
fn nearest_f32(given: f64) -> f32 {
    let nearest = given as f32;
    if nearest == 0.0 && given > 0.0 { f32::from_bits(1) } else { nearest }
}

/// Declares types for numbers in a range. Each declaration gives the range three times: in words, as a test and as a
/// schema.
macro_rules! number_fields {
    ($($(#[doc = $doc:literal])+ $name:ident, $expected:literal, |$value:ident| $test:expr, |$object:ident| $schema:expr;)*) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) struct $name(pub(crate) f32);

        impl $name {
            fn checked<E: Error>(given: f64) -> Result<Self, E> {
                let $value = given;
                if $test {
                    return Ok(Self(nearest_f32(given)));
                }
                Err(E::invalid_value(Unexpected::Float(given), &$expected))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct NumberVisitor;
                impl Visitor<'_> for NumberVisitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_f64<E: Error>(self, value: f64) -> Result<$name, E> {
                        $name::checked(value)
                    }
                    fn visit_u64<E: Error>(self, value: u64) -> Result<$name, E> {
                        $name::checked(value as f64)
                    }
                    fn visit_i64<E: Error>(self, value: i64) -> Result<$name, E> {
                        $name::checked(value as f64)
                    }
                }
                deserializer.deserialize_f64(NumberVisitor)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let $object = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Number));
                $schema.into()
            }
        }

        impl ToSchema for $name {}

        impl Field for $name {}
    )*};
}

number_fields! {
    /// Sampling temperature, which divides the logits.
    Temperature, "a number above 0, at most 100", |value| value > 0.0 && value <= 100.0,
        |object| object.exclusive_minimum(Some(0.0)).maximum(Some(100.0));
    /// Total probability of the tokens that nucleus sampling keeps.
    TopP, "a number above 0, at most 1", |value| value > 0.0 && value <= 1.0,
        |object| object.exclusive_minimum(Some(0.0)).maximum(Some(1.0));
    /// Fraction of the highest probability below which sampling removes tokens.
    MinP, "a number from 0 to 1", |value| (0.0..=1.0).contains(&value),
        |object| object.minimum(Some(0.0)).maximum(Some(1.0));
    /// Total probability of the tokens that locally typical sampling keeps.
    TypicalP, "a number above 0, at most 1", |value| value > 0.0 && value <= 1.0,
        |object| object.exclusive_minimum(Some(0.0)).maximum(Some(1.0));
    /// Probability below which sampling removes tokens.
    Cutoff, "a number from 0 to less than 1", |value| (0.0..1.0).contains(&value),
        |object| object.minimum(Some(0.0)).exclusive_maximum(Some(1.0));
    /// Penalty for tokens that already occur in the text.
    RepetitionPenalty, "a number above 0, at most 100", |value| value > 0.0 && value <= 100.0,
        |object| object.exclusive_minimum(Some(0.0)).maximum(Some(100.0));
    /// Exponent that beam search applies to the length of a beam. With exponents outside the accepted range, f32 scores
    /// overflow, and the `transformers` library returns empty texts.
    LengthPenalty, "a number from -3 to 10", |value| (-3.0..=10.0).contains(&value),
        |object| object.minimum(Some(-3.0)).maximum(Some(10.0));
}

/// A text that is not empty and has no control characters other than tabs and line breaks. The tokenizer would silently
/// drop other control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Text(pub(crate) Arc<str>);

impl Text {
    const EXPECTED: &'static str =
        "a non-empty string without control characters other than tabs and line breaks";

    /// Checks a text that is not the whole value of a field.
    ///
    /// # Errors
    /// What is accepted.
    pub(crate) fn try_new(text: &str) -> Result<Self, String> {
        Self::checked::<serde::de::value::Error>(text).map_err(|error| error.to_string())
    }

    fn checked<E: Error>(text: &str) -> Result<Self, E> {
        let is_control = |c: char| c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r');
        if text.is_empty() || text.contains(is_control) {
            return Err(E::custom(format_args!("expected {}", Self::EXPECTED)));
        }
        Ok(Self(text.into()))
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Text::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Text::checked(text)
    }

    fn visit_byte_buf<E: Error>(self, _: Vec<u8>) -> Result<Text, E> {
        Err(E::custom(
            "this part has a file name or an image type, which only images may have; send it as a text part",
        ))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_string(TextVisitor)
    }
}

impl PartialSchema for Text {
    fn schema() -> RefOr<Schema> {
        string_schema()
            .min_length(Some(1))
            .pattern(Some(r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]*$"))
            .into()
    }
}

impl ToSchema for Text {}

pub(super) fn string_schema() -> ObjectBuilder {
    ObjectBuilder::from(Object::with_type(SchemaType::Type(Type::String)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: serde::de::DeserializeOwned + fmt::Debug>(json: &str) -> String {
        serde_json::from_str::<T>(json).unwrap_err().to_string()
    }

    #[test]
    fn integers_accept_their_range_and_say_it() {
        assert_eq!(serde_json::from_str::<Int<1, 8>>("8").unwrap(), Int(8));
        assert_eq!(serde_json::from_str::<Int<1, 8>>("4.0").unwrap(), Int(4));
        assert!(
            error::<Int<1, 8>>("9")
                .starts_with("invalid value: integer `9`, expected an integer from 1 to 8")
        );
        assert!(error::<Int<1, 8>>("-1").contains("expected an integer from 1 to 8"));
        assert!(error::<Int<1, 8>>("1.5").contains("expected an integer from 1 to 8"));
        assert!(error::<Int<1, 8>>("\"3\"").contains("expected an integer from 1 to 8"));
        // `present` accepts null for a field; inside a list null is an error.
        assert!(error::<Int<1, 8>>("null").contains("expected an integer from 1 to 8"));
    }

    #[test]
    fn the_largest_seed_is_read_exactly() {
        type Seed = Int<0, 9_007_199_254_740_991>;
        assert_eq!(serde_json::from_str::<Seed>("9007199254740991").unwrap().0, (1 << 53) - 1);
        assert!(error::<Seed>("9007199254740992").contains("from 0 to 9007199254740991"));
    }

    #[test]
    fn ranges_are_those_of_the_number_as_it_was_written() {
        assert!((serde_json::from_str::<Temperature>("0.5").unwrap().0 - 0.5).abs() < f32::EPSILON);
        // This number would round to 0 as an f32. It is accepted, because the OpenAPI document accepts it.
        assert!(serde_json::from_str::<Temperature>("5e-324").unwrap().0 > 0.0);
        // These numbers are above the range, but as an f32 they would round to 100 or 1, which are in the range.
        assert!(error::<Temperature>("100.0000001").contains("a number above 0, at most 100"));
        assert!(error::<Temperature>("100.00000000000001").contains("a number above 0"));
        assert!(error::<TopP>("1.00000000001").contains("a number above 0, at most 1"));
        assert!(error::<Temperature>("0").contains("a number above 0, at most 100"));
        assert!(error::<Temperature>("-0.0").contains("a number above 0, at most 100"));
        assert!(error::<TopP>("1.5").contains("a number above 0, at most 1"));
        assert!(serde_json::from_str::<LengthPenalty>("-2").is_ok());
    }

    #[test]
    fn a_list_keeps_no_more_than_one_item_above_the_cap_however_many_come() {
        let read = |count: usize| {
            let json = format!("[{}]", vec!["\"a\""; count].join(","));
            Vec::<Text>::read(&mut serde_json::Deserializer::from_str(&json)).unwrap()
        };
        assert_eq!(read(3).len(), 3);
        assert_eq!(read(MAX_LISTED).len(), MAX_LISTED);
        let many = read(100_000);
        assert_eq!(many.len(), MAX_LISTED + 1);
        assert!(many.capacity() <= 2 * MAX_LISTED, "{}", many.capacity());
        // Items that are not stored must still be valid JSON.
        let broken = format!("[{}}}]", "\"a\",".repeat(2000));
        assert!(serde_json::from_str::<BoundedList<Text>>(&broken).is_err());
    }

    #[test]
    fn texts_refuse_control_characters_and_nothing() {
        assert_eq!(&*serde_json::from_str::<Text>("\"a\\tb\\n\"").unwrap().0, "a\tb\n");
        assert!(error::<Text>("\"\"").contains("non-empty"));
        assert!(error::<Text>("\"a\\u0000\"").contains("control characters"));
        assert!(error::<Text>("\"\\u001b[31m\"").contains("control characters"));
    }
}
