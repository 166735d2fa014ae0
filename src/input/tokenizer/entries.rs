//! Parses a JSON object and keeps the order of its keys. The order matters because tokens that are not in the
//! vocabulary get their ids in file order.

use std::fmt;
use std::path::Path;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::document::{self, DocumentError};

/// Keys and values of a JSON file, in file order.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Entries {
    /// Each key occurs once. If the file repeats a key, the last value is used.
    pub(super) entries: Vec<(String, Value)>,
    /// The entries of the object `extra_special_tokens`, if its value is an object.
    pub(super) extra: Vec<(String, Value)>,
}

/// The only key whose value may be an object in which the order of keys matters.
pub(super) const EXTRA: &str = "extra_special_tokens";

impl Entries {
    /// Parses the JSON object in a file's bytes.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct ExtraTokens {
            #[serde(default, rename = "extra_special_tokens")]
            extra: InOrder,
        }
        // Returns a precise error if the file is not a JSON object. If it is one, the two passes below cannot fail.
        document::parse_object(path, bytes)?;
        let entries: InOrder = serde_json::from_slice(bytes).unwrap_or_default();
        let extra = serde_json::from_slice(bytes).map(|inner: ExtraTokens| inner.extra);
        Ok(Self { entries: entries.0, extra: extra.unwrap_or_default().0 })
    }
}

/// Keys and values of a JSON object in file order. Empty for any other JSON value.
#[derive(Default)]
struct InOrder(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut found = InOrder::default();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    set(&mut found.0, &key, value);
                }
                Ok(found)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<InOrder, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(InOrder::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }

            fn visit_unit<E>(self) -> Result<InOrder, E> {
                Ok(InOrder::default())
            }
        }

        deserializer.deserialize_any(Collect)
    }
}

/// Sets the value of a key. An existing key keeps its position; a new one is appended.
pub(super) fn set<T>(entries: &mut Vec<(String, T)>, key: &str, value: T) {
    match entries.iter_mut().find(|(known, _)| known == key) {
        Some((_, place)) => *place = value,
        None => entries.push((key.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_of_the_file_and_the_last_value_of_a_key_counts() {
        let text =
            r#"{"z": 1, "a": [1, {}], "z": 2, "extra_special_tokens": {"q": "x", "b": null}}"#;
        let read = Entries::parse(Path::new("a.json"), text.as_bytes()).unwrap();
        let keys: Vec<&str> = read.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["z", "a", EXTRA]);
        assert_eq!(read.entries[0].1, 2);
        let extra: Vec<&str> = read.extra.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(extra, ["q", "b"]);
        for other in ["1", "-1", "0.5", "\"a\"", "null", "true", "[[1]]"] {
            let text = format!("{{\"extra_special_tokens\": {other}}}");
            let read = Entries::parse(Path::new("a.json"), text.as_bytes()).unwrap();
            assert_eq!((read.entries.len(), read.extra), (1, vec![]), "{other}");
        }
    }
}
