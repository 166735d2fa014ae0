//! Added and special tokens as the files of a checkpoint declare them.

use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::document::DocumentError;

/// The file and field of a value, for error messages.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FieldOrigin {
    pub(super) file: PathBuf,
    pub(super) field: String,
}

impl FieldOrigin {
    pub(super) fn refuse(&self, value: &Value, accepted: &str) -> DocumentError {
        let Self { file, field } = self.clone();
        DocumentError::field(file, field, Some(value), accepted)
    }

    fn of(&self, field: &str) -> Self {
        Self { file: self.file.clone(), field: format!("{}.{field}", self.field) }
    }
}

/// A token with its flags (`AddedToken` in transformers).
#[expect(clippy::struct_excessive_bools, reason = "these are the flags of a token in the files")]
#[derive(Debug, Clone, PartialEq)]
pub(super) struct DeclaredToken {
    pub(super) content: String,
    /// True if the token also matches the white space before it.
    lstrip: bool,
    /// True if the token also matches the white space after it.
    rstrip: bool,
    /// True if the token matches only as a whole word.
    single_word: bool,
    /// True if the token is skipped when ids are decoded.
    pub(super) special: bool,
    /// True if the token is matched in the normalised text. If the file does not set this flag, it is the opposite of
    /// `special`.
    normalized: Option<bool>,
}

impl DeclaredToken {
    /// Creates a token with no flag other than `special`. It is matched in the normalised text unless it is special.
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

    /// Reads a token from a JSON object. If `special` is given, it overrides the object's own flag.
    pub(super) fn read(
        object: &Map<String, Value>,
        special: Option<bool>,
        origin: &FieldOrigin,
    ) -> Result<Self, DocumentError> {
        let flag = |field: &str| match object.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(origin.of(field).refuse(other, "true or false")),
        };
        let content = match object.get("content") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(content)) => content.clone(),
            Some(other) => return Err(origin.of("content").refuse(other, "a string")),
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

    /// Converts the token for the `tokenizers` crate. If `named` is true, the token is one of the checkpoint's named
    /// special tokens and therefore always special.
    pub(super) fn to_added(&self, named: bool) -> AddedToken {
        let special = self.special || named;
        AddedToken::from(self.content.clone(), special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized.unwrap_or(!special))
    }
}

/// The value of an option: JSON as in the file, a token, or a list of such values.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum OptionValue {
    Json(Value),
    Token(DeclaredToken),
    List(Vec<Self>),
}

impl OptionValue {
    /// Returns the text of the token if this value is a token or a string.
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

    /// Returns the value as JSON, for error messages.
    pub(super) fn shown(&self) -> Value {
        match self {
            Self::Json(value) => value.clone(),
            Self::Token(token) => Value::from(token.content.as_str()),
            Self::List(items) => items.iter().map(Self::shown).collect(),
        }
    }
}

impl From<Value> for OptionValue {
    fn from(value: Value) -> Self {
        let Value::Array(items) = value else { return Self::Json(value) };
        Self::List(items.into_iter().map(Self::from).collect())
    }
}
