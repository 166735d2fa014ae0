//! A JSON value of which only little matters, such as `response_format`. The rest is dropped while the body is parsed: a
//! whole value could take many times the memory of its text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Number of characters of a text that are kept. No text that means anything here is longer.
const KEPT: usize = 32;

/// What matters of a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Brief {
    /// Absent or null.
    #[default]
    Null,
    /// True or false.
    Flag,
    Number(f64),
    /// The beginning of a text.
    Text(String),
    List,
    /// An object, with its field `type` if that is a text.
    Object(Option<String>),
}

struct BriefVisitor;

impl<'de> Visitor<'de> for BriefVisitor {
    type Value = Brief;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Brief, E> {
        Ok(Brief::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Brief, E> {
        Ok(Brief::Flag)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Brief, E> {
        Ok(Brief::Number(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Brief, E> {
        Ok(Brief::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Brief, E> {
        Ok(Brief::Number(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Brief, E> {
        Ok(Brief::Text(text.chars().take(KEPT).collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Brief, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Brief::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Brief, A::Error> {
        let mut kind = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "type" {
                map.next_value::<IgnoredAny>()?;
            } else if let Brief::Text(text) = map.next_value()? {
                kind = Some(text);
            }
        }
        Ok(Brief::Object(kind))
    }
}

impl<'de> Deserialize<'de> for Brief {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BriefVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_of_a_value() {
        let brief = |json: &str| serde_json::from_str::<Brief>(json).unwrap();
        assert_eq!(brief("null"), Brief::Null);
        assert_eq!(brief("true"), Brief::Flag);
        assert_eq!(brief("0.0"), Brief::Number(0.0));
        assert_eq!(brief("-1"), Brief::Number(-1.0));
        assert_eq!(brief("[[1], {}]"), Brief::List);
        assert_eq!(brief(r#"{"a": [1], "type": "text"}"#), Brief::Object(Some("text".into())));
        assert_eq!(brief(r#"{"type": {"type": "text"}}"#), Brief::Object(None));
        assert_eq!(
            brief(&format!("\"{}\"", "\u{e9}".repeat(99))),
            Brief::Text("\u{e9}".repeat(KEPT))
        );
    }
}
