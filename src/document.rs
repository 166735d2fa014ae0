//! Reads the small JSON files of a checkpoint field by field, so that an error can name the file, the field, its value
//! and the accepted values. Used by `model`, `hub` and the tokenizer of `input`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// First bytes of a Git LFS pointer, a text file that replaces the real file.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Maximum length of a value shown in a message, in characters.
const SHOWN: usize = 120;

/// Why a document cannot be used. Every message begins with the path of the file.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Path of the file at fault.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is a Git LFS pointer, which a clone without Git LFS has in place of a large file.
    #[error("{path} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")]
    LfsPointer {
        /// Path of the file at fault.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{path} is empty; copy or download it again")]
    Empty {
        /// Path of the file at fault.
        path: PathBuf,
    },
    /// The file is not JSON, or it is truncated.
    #[error("{path} is not valid JSON: line {line}, column {column}; copy or download it again")]
    NotJson {
        /// Path of the file at fault.
        path: PathBuf,
        /// Line of the error, counted from 1.
        line: usize,
        /// Column of the error, counted from 1; 0 before the first character.
        column: usize,
    },
    /// The file is JSON, but not an object.
    #[error("{path} is {kind}; accepted: a JSON object")]
    NotAnObject {
        /// Path of the file at fault.
        path: PathBuf,
        /// The JSON type of the content, in words.
        kind: &'static str,
    },
    /// A needed field is absent.
    #[error("{path} has no {field}; accepted: {accepted}")]
    Missing {
        /// Path of the file at fault.
        path: PathBuf,
        /// The field, as a path from the top.
        field: String,
        /// The accepted values, in words.
        accepted: String,
    },
    /// A field has a value that is not accepted.
    #[error("{path}: {field} is {value}; accepted: {accepted}")]
    Field {
        /// Path of the file at fault.
        path: PathBuf,
        /// The field, as a path from the top: `text_config.hidden_size`.
        field: String,
        /// Value of the field as JSON, shortened; `missing` if the field is absent.
        value: String,
        /// The accepted values, in words.
        accepted: String,
    },
}

impl DocumentError {
    /// Returns the error that names a field, its value and the accepted values.
    #[must_use]
    pub fn field(
        path: PathBuf,
        field: String,
        value: Option<&Value>,
        accepted: impl fmt::Display,
    ) -> Self {
        let value = value.map_or_else(|| "missing".to_owned(), shown);
        Self::Field { path, field, value, accepted: accepted.to_string() }
    }

    /// True if the content of the file is at fault; false if the operating system could not read the file.
    #[must_use]
    pub fn is_content(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// Reads the bytes of a file.
///
/// # Errors
/// `Read`; `LfsPointer`.
pub fn read(path: &Path) -> Result<Vec<u8>, DocumentError> {
    let bytes = std::fs::read(path)
        .map_err(|source| DocumentError::Read { path: path.to_owned(), source })?;
    if bytes.starts_with(LFS_POINTER) {
        return Err(DocumentError::LfsPointer { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Parses the bytes of a file as a JSON value.
///
/// # Errors
/// `Empty`; `NotJson`.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value, DocumentError> {
    if bytes.trim_ascii().is_empty() {
        return Err(DocumentError::Empty { path: path.to_owned() });
    }
    serde_json::from_slice(bytes).map_err(|error| DocumentError::NotJson {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

/// Parses the bytes of a file as a JSON object.
///
/// # Errors
/// `Empty`; `NotJson`; `NotAnObject`.
pub fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let no_object = |kind| DocumentError::NotAnObject { path: path.to_owned(), kind };
    match parse(path, bytes)? {
        Value::Object(object) => Ok(object),
        Value::Array(_) => Err(no_object("a list")),
        Value::String(_) => Err(no_object("a string")),
        Value::Number(_) => Err(no_object("a number")),
        Value::Bool(_) | Value::Null => Err(no_object("true, false or null")),
    }
}

/// The fields of an object in a file. A field that is `null` counts as absent, unless a method says otherwise.
#[derive(Debug, Clone, Copy)]
pub struct ObjectFields<'a> {
    path: &'a Path,
    /// Name of the field whose value is this object; empty for the top-level object of the file.
    block: &'static str,
    object: &'a Map<String, Value>,
}

impl<'a> ObjectFields<'a> {
    /// Returns the fields of the top-level object of the file.
    #[must_use]
    pub fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, block: "", object }
    }

    /// Returns the fields of the object that is the value of `field`; `None` if the field is absent or `null`.
    ///
    /// # Errors
    /// `Field` if the value is not an object.
    pub fn block(&self, field: &'static str) -> Result<Option<Self>, DocumentError> {
        let object = self.optional(field, "an object", |value| value.as_object())?;
        Ok(object.map(|object| Self { path: self.path, block: field, object }))
    }

    /// Returns the value of a field, including `null`.
    #[must_use]
    pub fn raw(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field)
    }

    /// Returns the value of a field; `None` if it is absent or `null`.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.raw(field).filter(|value| !value.is_null())
    }

    /// Returns the error that names `field`, its value and the accepted values.
    #[must_use]
    pub fn refuse(&self, field: &str, accepted: impl fmt::Display) -> DocumentError {
        let dot = if self.block.is_empty() { "" } else { "." };
        let name = format!("{}{dot}{field}", self.block);
        DocumentError::field(self.path.to_owned(), name, self.object.get(field), accepted)
    }

    /// Returns the value of a field, converted by `read`; `None` if it is absent or `null`.
    ///
    /// # Errors
    /// `Field` if `read` returns `None`.
    pub fn optional<T>(
        &self,
        field: &str,
        accepted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, DocumentError> {
        let read = |value| read(value).ok_or_else(|| self.refuse(field, accepted));
        self.get(field).map(read).transpose()
    }

    /// Returns the value of a boolean field; `None` if it is absent or `null`.
    ///
    /// # Errors
    /// `Field` if the value is not a boolean.
    pub fn boolean(&self, field: &str) -> Result<Option<bool>, DocumentError> {
        self.optional(field, "true or false", Value::as_bool)
    }

    /// Returns the value of a string field; `None` if it is absent or `null`.
    ///
    /// # Errors
    /// `Field` if the value is not a string.
    pub fn text(&self, field: &str) -> Result<Option<&'a str>, DocumentError> {
        self.optional(field, "a string", Value::as_str)
    }
}

/// Formats a value as JSON, shortened to [`SHOWN`] characters.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Result<Map<String, Value>, String> {
        parse_object(Path::new("config.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_error_for_a_document_that_is_no_object_is_in_plain_words() {
        let cases = [
            ("", "config.json is empty; copy or download it again"),
            (
                "{\"a\": 1,\n \"b\"",
                "config.json is not valid JSON: line 2, column 4; copy or download it again",
            ),
            ("[1]", "config.json is a list; accepted: a JSON object"),
            ("\"a\"", "config.json is a string; accepted: a JSON object"),
            ("1", "config.json is a number; accepted: a JSON object"),
            ("null", "config.json is true, false or null; accepted: a JSON object"),
        ];
        for (text, expected) in cases {
            assert_eq!(object(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_refusal_names_the_field_from_the_top_and_shortens_its_value() {
        let object = object(&format!(
            r#"{{"inner": {{"width": "{}", "side": 0}}, "list": [], "none": null}}"#,
            "é".repeat(300)
        ))
        .unwrap();
        let fields = ObjectFields::new(Path::new("config.json"), &object);
        let inner = fields.block("inner").unwrap().unwrap();
        let message = inner.boolean("width").unwrap_err().to_string();
        let start = "é".repeat(119);
        let expected = format!("config.json: inner.width is \"{start}...; accepted: true or false");
        assert_eq!(message, expected);
        let message = inner.text("side").unwrap_err().to_string();
        assert_eq!(message, "config.json: inner.side is 0; accepted: a string");
        let message = fields.block("list").unwrap_err().to_string();
        assert_eq!(message, "config.json: list is []; accepted: an object");
        assert!(fields.block("none").unwrap().is_none());
        let message = fields.refuse("absent", "a string").to_string();
        assert_eq!(message, "config.json: absent is missing; accepted: a string");
    }
}
