//! The requests that clients send, as bytes.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::chance::Chance;
use super::pictures;
use crate::input::image_id;

/// Operations of single calls with small inputs.
pub(super) const SMALL_CALLS: usize = 8;

/// Returns the head of a POST with a body of this type and length.
pub(super) fn head(path: &str, content_type: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: blip.test\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Returns a GET.
pub(super) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// Returns a POST of a picture file, with this query string.
pub(super) fn picture(path: &str, query: &str, file: &[u8]) -> Vec<u8> {
    let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    [head(&path, "image/png", file.len()).as_bytes(), file].concat()
}

/// Returns a POST of JSON.
pub(super) fn json(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    [head(path, "application/json", body.len()).as_bytes(), body.as_bytes()].concat()
}

/// Returns a POST of `/caption/batch` with these picture files.
pub(super) fn batch(files: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for file in files {
        body.extend_from_slice(
            b"--b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"p.png\"\r\n\r\n",
        );
        body.extend_from_slice(file);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b--\r\n");
    let head = head("/caption/batch", "multipart/form-data; boundary=b", body.len());
    [head.as_bytes(), &body].concat()
}

/// Returns a small single call, one of [`SMALL_CALLS`] kinds, with a name for the log. Half of the pictures are new.
pub(super) fn small_call(kind: usize, chance: &mut Chance) -> (&'static str, Vec<u8>) {
    let mark = if chance.percent(50) { chance.below(usize::MAX) } else { chance.below(8) };
    let file = pictures::small(mark as u64);
    let image = BASE64_STANDARD.encode(&file);
    match kind {
        0 => ("caption", picture("/caption", "max_new_tokens=8", &file)),
        1 => ("stream", picture("/caption", "stream=true", &file)),
        2 => ("vqa", json("/vqa", &json!({"image": image, "question": "is it as he was?"}))),
        3 => ("similarity", json("/similarity", &json!({"image": image, "texts": ["he", "she"]}))),
        4 => ("image embedding", picture("/embeddings", "", &file)),
        5 => ("text embedding", json("/embeddings", &json!({"text": words(chance)}))),
        6 => ("chat", json("/v1/chat/completions", &chat(&image, chance.percent(50)))),
        _ => ("compatible embeddings", {
            let input = [words(chance), words(chance)];
            json("/v1/embeddings", &json!({"model": "fake-retrieval", "input": input}))
        }),
    }
}

/// Returns a conversation of the OpenAI API about a picture.
fn chat(image: &str, stream: bool) -> Value {
    let url = format!("data:image/png;base64,{image}");
    let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let messages = json!([{"role": "user", "content": content}]);
    json!({"model": "fake-caption", "messages": messages, "max_tokens": 8, "stream": stream})
}

/// Returns a bulk request of so many lines, whose ids are the numbers from 0.
pub(super) fn bulk(lines: usize, chance: &mut Chance) -> Vec<u8> {
    let mut body = String::new();
    for id in 0..lines {
        writeln!(body, "{}", bulk_line(id, chance)).expect("a string takes all text");
    }
    [head("/bulk", "application/x-ndjson", body.len()).as_bytes(), body.as_bytes()].concat()
}

/// Returns a line of a bulk request. Half of the pictures are new.
fn bulk_line(id: usize, chance: &mut Chance) -> Value {
    let mark = if chance.percent(50) { chance.below(usize::MAX) } else { chance.below(8) };
    let image = BASE64_STANDARD.encode(pictures::small(mark as u64));
    match chance.below(4) {
        0 => json!({"id": id, "task": "caption", "image": image, "max_new_tokens": 8}),
        1 => json!({"id": id, "task": "vqa", "image": image, "question": "is it as he was?"}),
        2 => json!({"id": id, "task": "similarity", "image": image, "texts": ["he", "she"]}),
        _ => json!({"id": id, "task": "embeddings", "text": words(chance)}),
    }
}

/// Returns the request with a deadline of so many milliseconds.
pub(super) fn hurried(request: &[u8], milliseconds: usize) -> Vec<u8> {
    let end = request.iter().position(|&byte| byte == b'\n').map_or(0, |place| place + 1);
    let field = format!("x-request-timeout-ms: {milliseconds}\r\n");
    [&request[..end], field.as_bytes(), &request[end..]].concat()
}

/// Returns a call that gives a picture by its id. The picture may not have been sent yet.
pub(super) fn by_id(chance: &mut Chance) -> Vec<u8> {
    let id = image_id(&pictures::small(chance.below(8) as u64));
    json("/caption", &json!({"image": id.to_string()}))
}

/// Returns a call whose picture cannot be decoded.
pub(super) fn broken(chance: &mut Chance) -> Vec<u8> {
    let mut file = pictures::small(chance.below(8) as u64);
    file.truncate(chance.within(1, file.len() - 13));
    picture("/caption", "", &file)
}

/// Returns bytes that are no request, or nearly one.
pub(super) fn garbage(chance: &mut Chance) -> Vec<u8> {
    let kinds: [&[u8]; 7] = [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /caption HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"BREW /pot HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    match chance.below(kinds.len() + 2) {
        kind if kind < kinds.len() => kinds[kind].to_vec(),
        kind if kind == kinds.len() => {
            let mut head = String::from("GET /health HTTP/1.1\r\nhost: x\r\n");
            for number in 0..200 {
                write!(head, "x-{number}: {number}\r\n").expect("a string takes all text");
            }
            (head + "\r\n").into_bytes()
        }
        _ => (0..chance.within(1, 300)).map(|_| chance.below(256) as u8).collect(),
    }
}

fn words(chance: &mut Chance) -> String {
    let words = ["he", "she", "was", "first", "not", "with", "that"];
    let count = chance.within(1, 12);
    (0..count).map(|_| chance.pick(&words)).collect::<Vec<_>>().join(" ")
}
