//! Heads that are no requests: each is answered with a problem, counted and logged, and its connection ends.

use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::server::{read_to_end, read_until};
use crate::support::{TestApp, TestServer};

const SHORT: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(8);
const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

fn fields(count: usize) -> String {
    let fields: Vec<String> = (0..count).map(|index| format!("x-{index}: 1\r\n")).collect();
    format!("GET /health HTTP/1.1\r\n{}\r\n", fields.concat())
}

async fn answer(server: &TestServer, request: &[u8]) -> String {
    let mut stream = server.connect().await;
    // The server may answer before it has read everything.
    let _ = stream.write_all(request).await;
    tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed")
}

/// The code of the problem that this answer is, after its head was checked.
fn problem(answer: &str, status: u16) -> String {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let head = head.to_lowercase();
    assert!(head.contains("content-type: application/problem+json"), "{answer}");
    assert!(head.contains("connection: close"), "{answer}");
    assert!(head.contains("\r\nserver-timing: total;dur="), "{answer}");
    let date = head.split_once("\r\ndate: ").expect("a date").1;
    assert_eq!(date.find(" gmt"), Some("sun, 06 nov 1994 08:49:37".len()), "{answer}");
    assert!(head.contains("x-content-type-options: nosniff"), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let problem: Value = serde_json::from_str(body).expect("a problem");
    assert_eq!(problem["status"], status, "{answer}");
    let id = problem["request_id"].as_str().expect("an id");
    assert!(head.contains(&format!("x-request-id: {id}")), "{answer}");
    assert!(!problem["detail"].as_str().expect("a detail").is_empty());
    problem["code"].as_str().expect("a code").to_owned()
}

/// How many heads were counted with this status and code.
fn counted(app: &TestApp, status: &str, code: &str) -> u64 {
    let labels = ["malformed", "other", status, code];
    app.metrics.http_requests_total.with_label_values(&labels).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_no_request_is_a_problem_that_is_counted() {
    let server = TestServer::start(|_| ()).await;
    let heads: [&[u8]; 9] = [
        b"\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/3.0\r\nhost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /caption HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for (before, head) in (0..).zip(heads) {
        assert_eq!(counted(&server.app, "400", "invalid_request"), before);
        let answer = answer(&server, head).await;
        assert_eq!(problem(&answer, 400), "invalid_request", "{}", head.escape_ascii());
    }
    assert_eq!(counted(&server.app, "400", "invalid_request"), 9);
    let failures =
        server.app.metrics.request_failures_total.with_label_values(&["invalid_request"]);
    assert_eq!(failures.get(), 9);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_a_431_that_tells_the_limits() {
    let server = TestServer::start(|_| ()).await;
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000));
    let method = format!("{} / HTTP/1.1\r\n\r\n", "A".repeat(100_000));
    for (before, head) in (0..).zip([fields(65), fields(10_000), long, path, method]) {
        assert_eq!(counted(&server.app, "431", "head_too_large"), before);
        let answer = answer(&server, head.as_bytes()).await;
        assert_eq!(problem(&answer, 431), "head_too_large");
        assert!(answer.contains("64 fields") && answer.contains("32768 bytes"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_takes_too_long_is_a_408_and_silence_is_nothing() {
    let server =
        TestServer::start(|config| config.http.connections.header_read_timeout = SHORT).await;
    let slow = answer(&server, b"GET /health HTTP/1.1\r\nx-slow: ").await;
    assert_eq!(problem(&slow, 408), "request_timeout");
    assert_eq!(counted(&server.app, "408", "request_timeout"), 1);
    assert_eq!(answer(&server, b"").await, "");
    // The second head of a connection as well.
    let mut stream = server.send(HEALTH.as_bytes()).await;
    read_until(&mut stream, "\"ready\"}").await;
    stream.write_all(b"GET /hea").await.unwrap();
    let slow = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
    assert_eq!(problem(&slow, 408), "request_timeout");
    assert_eq!(counted(&server.app, "408", "request_timeout"), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_before_a_malformed_head_are_whole() {
    let server = TestServer::start(|_| ()).await;
    for first in [
        HEALTH.to_owned(),
        HEALTH.repeat(3),
        "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
    ] {
        let answer = answer(&server, format!("{first}garbage\r\n\r\n{HEALTH}").as_bytes()).await;
        let start = answer.rfind("HTTP/1.1 400").expect("the refusal");
        let (before, refusal) = answer.split_at(start);
        assert!(before.ends_with('}'), "{before}");
        assert_eq!(before.matches("HTTP/1.1 200 OK").count(), first.matches("GET").count());
        assert_eq!(problem(refusal, 400), "invalid_request");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_goes_on_sending() {
    let server = TestServer::start(|_| ()).await;
    let mut stream = server.send(b"garbage\r\n\r\n").await;
    stream.write_all(&vec![b'x'; 8 << 20]).await.expect("the server takes in what it refuses");
    let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
    assert_eq!(problem(&answer, 400), "invalid_request");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_a_wrong_host_are_counted_under_their_route() {
    let server = TestServer::start(|_| ()).await;
    for hosts in ["", "host: a\r\nhost: b\r\n", "host: a b\r\n"] {
        for target in ["/health", "http://a/health"] {
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}\r\n");
            let answer = answer(&server, request.as_bytes()).await;
            assert_eq!(problem(&answer, 400), "invalid_request", "{request}");
        }
    }
    let labels = ["/health", "GET", "400", "invalid_request"];
    assert_eq!(server.app.metrics.http_requests_total.with_label_values(&labels).get(), 6);
    server.stop().await;
}
