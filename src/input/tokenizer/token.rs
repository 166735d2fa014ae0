//! Added and special tokens as the files of a checkpoint give them.

use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::document::DocumentError;

/// Where a value stands, for messages.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    pub(super) field: String,
}

impl Place {
    pub(super) fn refuse(&self, value: &Value, accepted: &str) -> DocumentError {
        let Self { file, field } = self.clone();
        DocumentError::field(file, field, Some(value), accepted)
    }

    fn of(&self, field: &str) -> Self {
        Self { file: self.file.clone(), field: format!("{}.{field}", self.field) }
    }
}

/// A token with its flags (`AddedToken` of transformers).
#[expect(clippy::struct_excessive_bools, reason = "the flags that files give a token")]
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) content: String,
    /// Takes the spaces before it.
    lstrip: bool,
    /// Takes the spaces after it.
    rstrip: bool,
    /// Is found between other letters no more.
    single_word: bool,
    /// Left out when ids are decoded.
    pub(super) special: bool,
    /// Is looked for in the normalised text; where the file does not say, the opposite of `special`.
    normalized: Option<bool>,
}

impl Token {
    /// Without flags; `special` as given, looked for in the normalised text where it is not.
    pub(super) fn plain(content: &str, special: bool) -> Self {
        Self {
            content: content.to_owned(),
            lstrip: false,
            rstrip: false,
            single_word: false,
            special,
            normalized: Some(!special),
        }
    }

    /// That of an object. `special` overrules the object's own flag.
    pub(super) fn read(
        object: &Map<String, Value>,
        special: Option<bool>,
        place: &Place,
    ) -> Result<Self, DocumentError> {
        let flag = |field: &str| match object.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(place.of(field).refuse(other, "true or false")),
        };
        let content = match object.get("content") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(content)) => content.clone(),
            Some(other) => return Err(place.of("content").refuse(other, "a text")),
        };
        Ok(Self {
            content,
            lstrip: flag("lstrip")?.unwrap_or(false),
            rstrip: flag("rstrip")?.unwrap_or(false),
            single_word: flag("single_word")?.unwrap_or(false),
            special: match special {
                Some(special) => special,
                None => flag("special")?.unwrap_or(false),
            },
            normalized: flag("normalized")?,
        })
    }

    /// For the tokenizer. `named`: it is one of the checkpoint's named tokens, and so special.
    pub(super) fn to_added(&self, named: bool) -> AddedToken {
        let special = self.special || named;
        AddedToken::from(self.content.clone(), special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized.unwrap_or(!special))
    }
}

/// A value of the options: JSON as the file has it, or what is known to be a token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    Json(Value),
    Token(Token),
    List(Vec<Self>),
}

impl Given {
    /// The token's text, where this is a token or the text of one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Json(Value::String(text)) => Some(text),
            Self::Token(token) => Some(&token.content),
            Self::Json(_) | Self::List(_) => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Json(Value::Null))
    }

    /// For messages.
    pub(super) fn shown(&self) -> Value {
        match self {
            Self::Json(value) => value.clone(),
            Self::Token(token) => Value::from(token.content.as_str()),
            Self::List(items) => items.iter().map(Self::shown).collect(),
        }
    }
}

impl From<Value> for Given {
    fn from(value: Value) -> Self {
        let Value::Array(items) = value else { return Self::Json(value) };
        Self::List(items.into_iter().map(Self::from).collect())
    }
}
