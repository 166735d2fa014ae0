//! Deserializes one value of a form field (see `form`) as the type of the field requires: text, number, boolean,
//! enumeration or file.

use bytes::Bytes;
use serde::de::value::Error;
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// One value of a form field, before the type of the field interprets it.
#[derive(Debug, Clone)]
pub(crate) enum FormValue {
    /// A text part, or a value in the query string.
    Text(String),
    /// The bytes of a multipart part that has a file name or an image type, or of a raw body.
    File(Bytes),
}

/// A serde deserializer for one value of a form field.
pub(super) struct Scalar(pub(super) FormValue);

impl IntoDeserializer<'_, Error> for Scalar {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Scalar {
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            FormValue::Text(text) => visitor.visit_string(text),
            FormValue::File(bytes) => visitor.visit_byte_buf(bytes.into()),
        }
    }
}

impl<'de> Deserializer<'de> for Scalar {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bool(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0 {
            FormValue::Text(text) => match flag(text) {
                Some(flag) => visitor.visit_bool(flag),
                None => self.visit(visitor),
            },
            FormValue::File(_) => self.visit(visitor),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match number(&self.0) {
            Some(Number::Unsigned(value)) => visitor.visit_u64(value),
            Some(Number::Signed(value)) => visitor.visit_i64(value),
            Some(Number::Float(value)) => visitor.visit_f64(value),
            None => self.visit(visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            FormValue::Text(text) => visitor.visit_enum(text.into_deserializer()),
            FormValue::File(_) => Err(de::Error::custom(
                "this part has a file name or an image type, which only images may have; send it as a text part",
            )),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

/// Parses a boolean in the spellings of JSON, Python, HTML forms (`on`) and configuration files. Ignores white space
/// around the word.
fn flag(text: &str) -> Option<bool> {
    let text = text.trim();
    let is_one_of = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is_one_of(["true", "1", "on"]) {
        return Some(true);
    }
    is_one_of(["false", "0", "off"]).then_some(false)
}

/// Parses a number in JSON syntax: no `+` sign, no leading zeros. Ignores white space around the number.
fn number(value: &FormValue) -> Option<Number> {
    let FormValue::Text(text) = value else { return None };
    let text = text.trim();
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    if let Ok(value) = serde_json::from_str(text) {
        return Some(Number::Unsigned(value));
    }
    if let Ok(value) = serde_json::from_str(text) {
        return Some(Number::Signed(value));
    }
    serde_json::from_str(text).ok().map(Number::Float)
}
