//! The requests of a scenario, each on a connection of its own, and what came back, byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::inputs::{base64, picture};

/// What is sent, in turn.
pub(crate) const REQUESTS: [&str; 8] = [
    "caption",
    "question",
    "similarity",
    "text embedding",
    "captions of a batch",
    "stream",
    "raw picture of 100 KB",
    "metrics",
];

/// The kind of a request for readiness.
pub(crate) const HEALTH: usize = usize::MAX;

/// What came back on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// One whole reply.
    One(u16),
    /// Nothing.
    Closed,
    /// Several replies, or half of one.
    Many(String),
}

/// Longer than anything takes; a reply that never comes is a failure, not a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends the request of this kind and reads until the connection ends.
pub(crate) async fn send(address: SocketAddr, kind: usize) -> Reply {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may close while this is being written; what it said is read all the same.
        let _ = stream.write_all(&request(kind)).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let text = tokio::time::timeout(PATIENCE, exchange).await.expect("a reply or an end in time");
    parse(text)
}

fn request(kind: usize) -> Vec<u8> {
    if kind == HEALTH {
        return head("GET", "/health/ready", "", 0);
    }
    // Each request has a picture of its own, so that none is answered from a cache.
    let mark = (kind % 251) as u8;
    let file = picture(mark, 5 + (kind / 251) as u32, 3, image::ImageFormat::Png);
    let image = base64(&file);
    let (path, body) = match kind % REQUESTS.len() {
        0 => ("/caption", json!({"image": image})),
        1 => ("/vqa", json!({"image": image, "question": "how many?"})),
        2 => ("/similarity", json!({"image": image, "texts": ["one", "two"]})),
        3 => ("/embeddings", json!({"text": "three"})),
        4 => (
            "/caption/batch",
            json!({"inputs": [{"image": image}, {"image": image, "prompt": "a"}]}),
        ),
        5 => ("/caption", json!({"image": image, "stream": true})),
        6 => {
            let file = picture(mark, 200, 170, image::ImageFormat::Bmp);
            let head = head("POST", "/caption", "image/bmp", file.len());
            return [head, file].concat();
        }
        _ => return head("GET", "/metrics", "", 0),
    };
    let body = body.to_string().into_bytes();
    [head("POST", path, "application/json", body.len()), body].concat()
}

fn head(method: &str, path: &str, content_type: &str, length: usize) -> Vec<u8> {
    let fields = match content_type {
        "" => String::new(),
        _ => format!("content-type: {content_type}\r\ncontent-length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n").into_bytes()
}

/// One reply is a head and as much body as it says.
fn parse(text: String) -> Reply {
    if text.is_empty() {
        return Reply::Closed;
    }
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Reply::Many(text) };
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).map(str::to_owned)
    };
    let whole = match field("content-length:") {
        Some(length) => length.parse() == Ok(body.len()),
        None => {
            field("transfer-encoding:").as_deref() == Some("chunked") && body.ends_with("0\r\n\r\n")
        }
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status {
        Some(status) if whole && !body.contains("HTTP/1.1 ") => {
            Reply::One(status_of_last_event(body).unwrap_or(status))
        }
        _ => Reply::Many(text),
    }
}

/// A stream that had begun fails in its last event, which holds a problem.
fn status_of_last_event(body: &str) -> Option<u16> {
    let (_, problem) = body.split_once("event: error")?;
    let (_, status) = problem.split_once("\"status\":")?;
    status.get(..3)?.parse().ok()
}
