//! A picture on its way through a run, and the row that is written for it.

use serde::Serialize;
use serde_json::{Map, Value};

use super::pictures::Place;

/// A picture on its way through a run.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) place: Place,
    /// Fields of the request for this picture alone.
    pub(super) fields: Map<String, Value>,
    pub(super) file: FileFacts,
}

/// What identifies the content of a file. Empty for URLs and for files that cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct FileFacts {
    /// Size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    /// Time of the last change, in RFC 3339 with milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modified: Option<String>,
    /// SHA-256 in hexadecimal digits, if changes are recognised by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

/// The answer to a picture: what `/bulk` has in `result`, or a problem.
pub(super) type Outcome = Result<Map<String, Value>, Map<String, Value>>;

/// Returns a problem of this program, in the form of those of the server.
pub(super) fn problem(code: &str, detail: impl Into<String>) -> Map<String, Value> {
    Map::from_iter([
        ("code".to_owned(), Value::from(code)),
        ("detail".to_owned(), Value::from(detail.into())),
    ])
}

/// Returns the text of a problem for people.
pub(super) fn detail(problem: &Map<String, Value>) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str);
    match (text("code"), text("detail")) {
        (Some(code), Some(detail)) => format!("{detail} ({code})"),
        (one, other) => one.or(other).unwrap_or("unknown error").to_owned(),
    }
}

/// The row of a picture.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    path: String,
    #[serde(flatten)]
    file: &'a FileFacts,
    /// The fields of the answer.
    #[serde(flatten)]
    answer: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Map<String, Value>>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        item: &'a Item,
        outcome: Result<&'a Map<String, Value>, &'a Map<String, Value>>,
    ) -> Self {
        Self {
            path: item.place.name(),
            file: &item.file,
            answer: outcome.ok(),
            error: outcome.err(),
        }
    }
}
