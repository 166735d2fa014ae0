//! A response that was read to its end, and what every response must have.

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads a response to its end and checks what every response must have.
    pub(crate) async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body that can be read").to_bytes().to_vec();
        let answer = Self { status: parts.status, headers: parts.headers, body };
        assert!(!answer.header("x-request-id").is_empty());
        assert!(!answer.header("server-timing").is_empty());
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store");
        answer
    }

    /// A header's text, empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The JSON of a 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        let json: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert!(!has_null(&json), "null is never sent: {json}");
        json
    }

    /// The problem of a refusal with this status and code, its shape checked.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert_problem(&problem, status, code);
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        if status == 503 {
            let seconds: u64 = self.header("retry-after").parse().expect("whole seconds");
            assert!(seconds >= 1);
        }
        problem
    }

    /// The field of the first fault of a refusal.
    #[track_caller]
    pub(crate) fn refused_field(&self, status: u16, code: &str) -> String {
        let problem = self.refused(status, code);
        problem["errors"][0]["field"]
            .as_str()
            .unwrap_or_else(|| panic!("no field in {problem}"))
            .to_owned()
    }
}

fn has_null(json: &Value) -> bool {
    match json {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(fields) => fields.values().any(has_null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The shape of a problem, alone or in the results of a batch.
#[track_caller]
pub(crate) fn assert_problem(problem: &Value, status: u16, code: &str) {
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["type"], format!("urn:blip:problem:{code}"));
    assert_eq!(problem["status"], status);
    for text in ["title", "detail", "request_id"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{text} in {problem}");
    }
    let known = ["type", "title", "status", "code", "detail", "request_id", "errors"];
    let fields = problem.as_object().expect("an object");
    assert!(fields.keys().all(|field| known.contains(&field.as_str())), "{problem}");
}
