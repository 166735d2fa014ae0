//! Parses one line of a bulk request: the fields that every line has, and the request of a single call in the same
//! object.

use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess,
    Visitor,
};

use super::json;
use crate::http::error::ApiError;

/// The fields that every line has, whatever its request. The type must ignore all other fields.
pub(crate) trait OwnFields: DeserializeOwned + Send + 'static {
    /// The names of these fields.
    const NAMES: &'static [&'static str];
}

/// Parses the own fields of a line.
///
/// # Errors
/// `invalid_request`, with the field; `overloaded` if there is no memory for it.
pub(crate) fn own_fields<F: OwnFields>(line: &[u8]) -> Result<F, ApiError> {
    json::parse_object(line, &[], json::LINE)
}

/// Parses the request of a line, which has all fields that are not own fields of the line.
///
/// # Errors
/// Those of [`own_fields`].
pub(crate) fn request<R: DeserializeOwned, F: OwnFields>(line: &[u8]) -> Result<R, ApiError> {
    json::parse_object(line, F::NAMES, json::LINE)
}

/// A deserializer of an object without the fields called `skipped`.
pub(super) struct WithoutFields<D> {
    pub(super) object: D,
    pub(super) skipped: &'static [&'static str],
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for WithoutFields<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let Self { object, skipped } = self;
        object.deserialize_map(OtherFieldsVisitor { visitor, skipped })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct struct enum identifier ignored_any
    }
}

struct OtherFieldsVisitor<V> {
    visitor: V,
    skipped: &'static [&'static str],
}

impl<'de, V: Visitor<'de>> Visitor<'de> for OtherFieldsVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(OtherFields { map, skipped: self.skipped })
    }
}

/// The fields of an object without those called `skipped`.
struct OtherFields<A> {
    map: A,
    skipped: &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OtherFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        if self.skipped.is_empty() {
            return self.map.next_key_seed(seed);
        }
        while let Some(key) = self.map.next_key::<String>()? {
            if !self.skipped.contains(&&*key) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            self.map.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}
