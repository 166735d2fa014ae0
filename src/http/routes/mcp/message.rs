//! Parses a message before the SDK does. The SDK parses a whole body twice, on the thread that serves connections, and a list
//! of a million numbers takes a hundred times its size. So the long texts of the arguments (pictures) are taken out here, the
//! number of values is bounded, and the SDK sees only the small rest. The tool puts the texts back.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::http::extract::image_field::copy_text;

/// Maximum number of values in a message. The longest list that a route takes has 1,024 elements.
const MAX_VALUES: usize = 4096;

/// Texts of the arguments of at least this many bytes are taken out.
const LONG_BYTES: usize = 128;

/// Maximum size of all other texts and names together, in bytes.
const MAX_SHORT_BYTES: usize = 256 << 10;

/// What stands in place of a text that was taken out: this mark and its index. JSON texts of clients may contain the mark too:
/// such a text then stands for one that the same client sent.
const MARK: char = '\0';

/// A message without the long texts of its arguments.
pub(super) struct Message {
    pub(super) small: Map<String, Value>,
    pub(super) texts: Texts,
}

/// The texts that were taken out.
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<Option<String>>);

impl Texts {
    /// Puts the texts back, each once.
    pub(super) fn restore(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let index = text.strip_prefix(MARK).and_then(|index| index.parse::<usize>().ok());
                let place = index.and_then(|index| self.0.get_mut(index));
                if let Some(long) = place.and_then(Option::take) {
                    *text = long;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.restore(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.restore(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// What has been parsed so far.
#[derive(Default)]
struct Parsed {
    texts: Vec<Option<String>>,
    values: usize,
    short_bytes: usize,
}

impl Parsed {
    fn count_value<E: Error>(&mut self) -> Result<(), E> {
        self.values += 1;
        if self.values <= MAX_VALUES {
            return Ok(());
        }
        Err(E::custom(format_args!("a message may have at most {MAX_VALUES} values")))
    }

    fn count_short<E: Error>(&mut self, text: &str) -> Result<(), E> {
        self.short_bytes += text.len();
        if self.short_bytes <= MAX_SHORT_BYTES {
            return Ok(());
        }
        let most = MAX_SHORT_BYTES;
        Err(E::custom(format_args!(
            "the texts of a message, without long arguments, may have at most {most} bytes"
        )))
    }
}

/// Where a value stands in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Message,
    Params,
    Arguments,
    Elsewhere,
}

impl Place {
    fn of_field(self, name: &str) -> Self {
        match (self, name) {
            (Self::Message, "params") => Self::Params,
            (Self::Params, "arguments") | (Self::Arguments, _) => Self::Arguments,
            (Self::Message | Self::Params | Self::Elsewhere, _) => Self::Elsewhere,
        }
    }
}

struct OneValue<'a> {
    parsed: &'a mut Parsed,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for OneValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.parsed.count_value()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        let text_of = copy_text(text)?;
        if self.place == Place::Arguments && text.len() >= LONG_BYTES {
            let index = self.parsed.texts.len();
            self.parsed.texts.push(Some(text_of));
            return Ok(Value::String(format!("{MARK}{index}")));
        }
        self.parsed.count_short(text)?;
        Ok(Value::String(text_of))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let Self { parsed, place } = self;
        let place = if place == Place::Arguments { place } else { Place::Elsewhere };
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(OneValue { parsed: &mut *parsed, place })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        fields(self.parsed, self.place, map).map(Value::Object)
    }
}

fn fields<'de, A: MapAccess<'de>>(
    parsed: &mut Parsed,
    place: Place,
    mut map: A,
) -> Result<Map<String, Value>, A::Error> {
    let mut fields = Map::new();
    while let Some(name) = map.next_key::<String>()? {
        parsed.count_short(&name)?;
        let place = place.of_field(&name);
        let value = map.next_value_seed(OneValue { parsed: &mut *parsed, place })?;
        fields.insert(name, value);
    }
    Ok(fields)
}

struct MessageVisitor;

impl<'de> Visitor<'de> for MessageVisitor {
    type Value = Message;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC message")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Message, A::Error> {
        let mut parsed = Parsed::default();
        let small = fields(&mut parsed, Place::Message, map)?;
        Ok(Message { small, texts: Texts(parsed.texts) })
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MessageVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(message: &Value) -> Result<Message, String> {
        serde_json::from_str(&message.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn long_arguments_are_taken_out_and_put_back() {
        let long = "A".repeat(LONG_BYTES);
        let arguments =
            json!({"image": long, "texts": ["short", long], "n": -1, "x": 0.5, "b": [true, null]});
        let message = json!({"id": long, "method": "tools/call", "params": {"name": "caption", "arguments": arguments}});
        let Message { small, mut texts } = parse(&message).unwrap();
        let small = Value::Object(small);
        assert!(small["params"].to_string().len() < 150, "{small}");
        // An id goes back to the client, so it stays whole.
        assert_eq!(small["id"], long);
        let mut restored = small["params"]["arguments"].clone();
        texts.restore(&mut restored);
        assert_eq!(restored, arguments);
        // A mark that stands for no text stays as it is.
        let mut unknown = json!(["\0", "\0x", "\u{0}7"]);
        texts.restore(&mut unknown);
        assert_eq!(unknown, json!(["\0", "\0x", "\u{0}7"]));
    }

    #[test]
    fn messages_of_many_values_or_names_are_refused() {
        let many = json!({"params": {"arguments": {"image": vec![0; MAX_VALUES]}}});
        assert!(parse(&many).is_err_and(|error| error.contains("4096 values")));
        let nested = format!("{{\"a\":{}", "[".repeat(10_000));
        assert!(serde_json::from_str::<Message>(&nested).is_err());
        let text = "x".repeat(MAX_SHORT_BYTES + 1);
        assert!(parse(&json!({"method": text})).is_err_and(|error| error.contains("bytes")));
        assert!(parse(&json!({text: 1})).is_err_and(|error| error.contains("bytes")));
    }
}
