//! The requests that are sent, and what may come back.

use std::io::{ErrorKind, Read, Write};

use image::ImageFormat;
use serde_json::{Value, json};

use crate::robustness::bombs::jpeg;
use crate::robustness::wire::answer;
use crate::support::inputs::{BOUNDARY, Multipart, base64};

/// A request and how to read its answer.
pub(super) struct Call {
    pub(super) name: String,
    pub(super) request: Vec<u8>,
}

/// What came back on a connection.
#[derive(Debug)]
pub(super) enum Reply {
    /// One whole answer.
    Whole { status: u16, head: String, body: Vec<u8> },
    /// The connection ended before a whole answer.
    Closed,
    /// Nothing more came, and the connection did not end.
    Late,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// The same answer as without the fault.
    Right,
    /// A problem with this code.
    Refused(String),
    /// An answer in which one item or the end of the text is a problem with this code.
    Part(String),
    /// The connection ended without a whole answer.
    Closed,
}

/// Sends a request and reads one answer.
pub(super) fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Reply {
    // The server may answer, or end the connection, before it has read everything.
    let sent = stream.write_all(request).and_then(|()| stream.flush()).is_ok();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        if let Ok((status, length)) = answer(&bytes) {
            assert_eq!(length, bytes.len(), "more than one answer");
            let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap_or(0) + 4;
            let body = bytes.split_off(head);
            let head = String::from_utf8_lossy(&bytes).to_lowercase();
            return Reply::Whole { status, head, body };
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Reply::Closed,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return if sent { Reply::Late } else { Reply::Closed };
            }
            Err(_) => return Reply::Closed,
        }
    }
}

impl Reply {
    /// True if the connection serves no further request.
    pub(super) fn ends_connection(&self) -> bool {
        match self {
            Self::Whole { head, .. } => head.contains("connection: close"),
            Self::Closed | Self::Late => true,
        }
    }

    /// The content of an answer of 200, without what differs from one answer to the next.
    ///
    /// # Errors
    /// Says why it is none.
    pub(super) fn content(&self) -> Result<Value, String> {
        if let Self::Whole { status: 200, head, body } = self {
            return content(head, body);
        }
        Err(format!("no answer: {}", self.shown()))
    }

    /// What became of the request, given the content of the right answer.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn judge(&self, right: &Value) -> Result<Outcome, String> {
        match self {
            Self::Late => Err("no answer and no end of the connection".to_owned()),
            Self::Closed => Ok(Outcome::Closed),
            Self::Whole { status: 200, .. } => {
                let content = self.content()?;
                if content == *right {
                    return Ok(Outcome::Right);
                }
                part(&content, right).map(Outcome::Part).ok_or_else(|| {
                    format!("a wrong answer: {content}\nthe right one: {right}")
                        .chars()
                        .take(4000)
                        .collect()
                })
            }
            Self::Whole { status, head, body } => {
                let problem: Option<Value> = serde_json::from_slice(body).ok();
                let code = problem.as_ref().and_then(|problem| code_of(problem, Some(*status)));
                let code = code.filter(|_| head.contains("application/problem+json"));
                code.map(Outcome::Refused).ok_or_else(|| format!("no problem: {}", self.shown()))
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Whole { status, body, .. } => {
                let body = String::from_utf8_lossy(body);
                format!("{status} {}", body.chars().take(2000).collect::<String>())
            }
            Self::Closed | Self::Late => format!("{self:?}"),
        }
    }
}

fn content(head: &str, body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    if head.contains("text/event-stream") {
        let blocks = text.split("\n\n").filter(|block| block.contains("event: "));
        let event = |block: &str| {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            let data = serde_json::from_str(field("data: ")?).ok()?;
            Some(json!({"event": field("event: ")?, "data": plain(data)}))
        };
        let events: Option<Vec<Value>> = blocks.map(event).collect();
        return events.map(Value::from).ok_or_else(|| format!("broken events: {text}"));
    }
    if head.contains("application/json") {
        return serde_json::from_str(text).map(plain).map_err(|error| format!("{error}: {text}"));
    }
    // Metrics: their names. Other texts as they are.
    if head.contains("version=0.0.4") {
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        return Ok(names.map(Value::from).collect());
    }
    Ok(text.into())
}

/// Leaves out what differs from one answer to the next.
fn plain(json: Value) -> Value {
    match json {
        Value::Object(fields) => {
            let stays = |(name, _): &(String, Value)| !["timing", "request_id"].contains(&&**name);
            fields.into_iter().filter(stays).map(|(name, value)| (name, plain(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => json,
    }
}

/// The code of a problem whose status fits.
fn code_of(problem: &Value, status: Option<u16>) -> Option<String> {
    let code = problem["code"].as_str()?;
    let whole = problem["type"] == format!("urn:blip:problem:{code}")
        && problem["detail"].is_string()
        && status.is_none_or(|status| problem["status"] == status);
    whole.then(|| code.to_owned())
}

/// The code of the problem in an answer of which the rest is right: an item of a batch, or the last event of a stream.
fn part(content: &Value, right: &Value) -> Option<String> {
    if let (Some(events), Some(right)) = (content.as_array(), right.as_array()) {
        let (last, before) = events.split_last()?;
        let begins = right.starts_with(before);
        return (begins && last["event"] == "error").then(|| code_of(&last["data"], None))?;
    }
    let (results, wanted) = (content["results"].as_array()?, right["results"].as_array()?);
    let mut codes = Vec::new();
    for (result, wanted) in results.iter().zip(wanted) {
        if result != wanted {
            codes.push(code_of(&result["error"], None)?);
        }
    }
    let counted = content["failed"] == codes.len() && results.len() == wanted.len();
    codes.dedup();
    counted.then(|| codes.join("+"))
}

fn call(name: &str, method: &str, path: &str, content_type: &str, body: &[u8]) -> Call {
    let fields = match content_type {
        "" => String::new(),
        _ => format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    Call { name: name.to_owned(), request: [head.as_bytes(), body].concat() }
}

fn post(name: &str, path: &str, body: &Value) -> Call {
    call(name, "POST", path, "application/json", body.to_string().as_bytes())
}

pub(super) fn get(path: &str) -> Call {
    call(path, "GET", path, "", b"")
}

/// A caption of a picture file.
fn raw(name: &str, file: &[u8]) -> Call {
    call(name, "POST", "/caption", "application/octet-stream", file)
}

/// A picture that no encoder makes small, so that its file is large too.
pub(super) fn busy_picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut state = 1_u32;
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        image::Rgb([(state >> 24) as u8, (x % 256) as u8, (y % 256) as u8])
    });
    let mut file = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut file, format).expect("an encoder for every accepted format");
    file.into_inner()
}

/// One call of each endpoint and encoding that has an image of this file.
pub(super) fn of_every_endpoint(file: &[u8]) -> Vec<Call> {
    let image = base64(file);
    let multipart = Multipart::default().file("image", file).text("prompt", "a").finish();
    let form = format!("multipart/form-data; boundary={BOUNDARY}");
    vec![
        post("caption", "/caption", &json!({"image": image, "prompt": "a"})),
        call("caption, multipart", "POST", "/caption", &form, &multipart),
        raw("caption, raw", file),
        post("caption, stream", "/caption", &json!({"image": image, "stream": true})),
        post(
            "captions",
            "/caption/batch",
            &json!({"inputs": [{"image": image}, {"image": image, "prompt": "a"}]}),
        ),
        post("question", "/vqa", &json!({"image": image, "question": "what?"})),
        post(
            "questions",
            "/vqa/batch",
            &json!({"inputs": [{"image": image, "question": "what?"}, {"image": image, "question": "where?"}]}),
        ),
        post("similarity", "/similarity", &json!({"image": image, "texts": ["a", "b"]})),
        post(
            "similarities",
            "/similarity/batch",
            &json!({"inputs": [{"image": image, "text": "a"}, {"image": image, "text": "b"}]}),
        ),
        post("embedding of a text", "/embeddings", &json!({"text": "a"})),
        post("embedding of an image", "/embeddings", &json!({"image": image})),
        post(
            "embeddings",
            "/embeddings/batch",
            &json!({"inputs": [{"text": "a"}, {"image": image}]}),
        ),
    ]
}

/// One raw call with a picture of each format and variant that has a decoder of its own.
pub(super) fn of_every_format(width: u32, height: u32) -> Vec<Call> {
    let (w, h) = (width as u16, height as u16);
    let encoded = [
        ("jpeg", ImageFormat::Jpeg),
        ("png", ImageFormat::Png),
        ("gif", ImageFormat::Gif),
        ("webp", ImageFormat::WebP),
        ("bmp", ImageFormat::Bmp),
    ];
    let encoded = encoded.map(|(name, format)| raw(name, &busy_picture(width, height, format)));
    let made = [
        raw("jpeg, progressive", &jpeg::progressive((w, h), 3)),
        raw("jpeg, arithmetic", &jpeg::arithmetic((w, h), 300)),
    ];
    encoded.into_iter().chain(made).collect()
}

/// One GET of each path that answers with more than a few bytes.
pub(super) fn of_every_document() -> Vec<Call> {
    ["/health/ready", "/info", "/metrics", "/openapi.json", "/openapi.yaml"].map(get).into()
}
