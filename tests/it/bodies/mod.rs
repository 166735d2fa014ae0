//! Bodies as clients really send them, over the real router: tables of what is accepted, with one answer for all
//! spellings of a request, and of what is refused, with the field and the words that help.

mod accepted;
mod clients;
mod host;
mod refused;

use axum::body::Body;
use axum::http::Request;
use serde_json::Value;

use crate::support::inputs::BOUNDARY;
use crate::support::{Answer, TestApp};

/// A request to send.
pub(crate) struct Sent {
    path: String,
    content_type: String,
    body: Vec<u8>,
}

/// A body of this type ("" sends none); the path may have a query string.
fn typed(path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Sent {
    Sent { path: path.to_owned(), content_type: content_type.to_owned(), body: body.into() }
}

fn json(path: &str, text: &str) -> Sent {
    typed(path, "application/json", text)
}

/// One part; the head is what follows `content-disposition: form-data; `, further header lines included.
fn part(head: &[u8], body: &[u8]) -> Vec<u8> {
    let start = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; ");
    [start.as_bytes(), head, b"\r\n\r\n", body, b"\r\n"].concat()
}

/// A text part without a type.
fn text(name: &str, value: &str) -> Vec<u8> {
    part(format!("name=\"{name}\"").as_bytes(), value.as_bytes())
}

/// A part with a file name.
fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    part(format!("name=\"{name}\"; filename=\"x.png\"").as_bytes(), bytes)
}

fn form(path: &str, parts: &[Vec<u8>]) -> Sent {
    let body = [&*parts.concat(), format!("--{BOUNDARY}--\r\n").as_bytes()].concat();
    typed(path, &format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

impl Sent {
    async fn to(self, app: &TestApp) -> Answer {
        let mut request = Request::post(self.path);
        if !self.content_type.is_empty() {
            request = request.header("content-type", self.content_type);
        }
        app.send(request.body(Body::from(self.body)).unwrap()).await
    }
}

/// Sends all and reports each whose answer is not that of the first, which must be a 200.
async fn all_answer_alike(app: &TestApp, cases: Vec<(&str, Sent)>) {
    let mut expected: Option<Value> = None;
    let mut failures = Vec::new();
    for (name, sent) in cases {
        let answer = sent.to(app).await;
        let found = serde_json::from_slice(&answer.body).ok();
        if answer.status != 200 || (expected.is_some() && expected != found) {
            failures.push(format!("{name}: {} {}", answer.status, answer.text()));
        } else {
            expected = found;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
