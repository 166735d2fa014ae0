//! What only bytes on a real socket show: slow clients, limits of heads, ends of connections.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::server::{read_to_end, read_until};
use crate::support::{TestServer, base64, png};

const SHORT: Duration = Duration::from_millis(100);
/// Far above `SHORT`, far below any default.
const SOON: Duration = Duration::from_secs(5);

fn post(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_cut_off() {
    let server =
        TestServer::start(|config| config.http.connections.header_read_timeout = SHORT).await;
    let start = Instant::now();
    for bytes in [&b""[..], b"G", b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let stream = server.send(bytes).await;
        let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("cut off");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(start.elapsed() >= SHORT * 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_head_is_timed_from_its_first_byte_and_idling_is_not() {
    let server =
        TestServer::start(|config| config.http.connections.header_read_timeout = SHORT).await;
    let mut stream = server.send(HEALTH).await;
    read_until(&mut stream, "\"ready\"}").await;
    // Idle for longer than a head may take: the connection is still good.
    tokio::time::sleep(SHORT * 3).await;
    stream.write_all(HEALTH).await.unwrap();
    read_until(&mut stream, "\"ready\"}").await;
    // A trickle of a head is not.
    stream.write_all(b"GET /hea").await.unwrap();
    tokio::time::timeout(SOON, read_to_end(stream)).await.expect("cut off");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_ends_after_keep_alive() {
    let server = TestServer::start(|config| config.http.connections.keep_alive = SHORT).await;
    let mut stream = server.send(HEALTH).await;
    read_until(&mut stream, "\"ready\"}").await;
    tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_a_408_and_the_connection_ends() {
    let server =
        TestServer::start(|config| config.http.connections.body_total_timeout = SHORT).await;
    let mut stream =
        server.send(b"POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").await;
    stream.write_all(b"x").await.unwrap();
    let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_expectation_asks_for_no_body() {
    let server = TestServer::start(|config| config.http.limits.max_body_bytes = 10).await;
    let head =
        b"POST /caption HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n";
    let answer =
        tokio::time::timeout(SOON, read_to_end(server.send(head).await)).await.expect("closed");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_from_the_head_alone_reaches_a_client_that_sends_its_whole_body_first() {
    let server = TestServer::start(|_| ()).await;
    for (path, content_type, status, code) in [
        ("/caption", "text/plain", 415, "unsupported_media_type"),
        ("/nowhere", "application/json", 404, "route_not_found"),
    ] {
        let body = vec![b'x'; 8 << 20];
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = server.send(head.as_bytes()).await;
        stream.write_all(&body).await.expect("the server takes in what it refuses");
        let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
        assert!(answer.ends_with('}'), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_after_a_body_that_was_read_to_its_end_whatever_the_answer() {
    let server = TestServer::start(|_| ()).await;
    let multipart = "--b\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\na\r\n--b--\r\n";
    let chunked = format!(
        "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{multipart}\r\n0\r\n\r\n",
        multipart.len()
    );
    for request in [post("/caption", "{}"), chunked.into_bytes()] {
        let mut stream = server.send(&request).await;
        let refused = read_until(&mut stream, "\"errors\"").await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
        assert!(!refused.to_lowercase().contains("connection: close"), "{refused}");
        stream.write_all(HEALTH).await.unwrap();
        read_until(&mut stream, "\"ready\"}").await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_bounded_in_fields_and_bytes() {
    let server = TestServer::start(|_| ()).await;
    let fields: Vec<String> = (0..65).map(|index| format!("x-{index}: 1\r\n")).collect();
    let fields = fields.concat();
    let long = format!("x-long: {}\r\n", "x".repeat(40 << 10));
    for head in [fields, long] {
        let request = format!("GET /health HTTP/1.1\r\n{head}\r\n");
        let mut stream = server.connect().await;
        // The server may hang up before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lengths_are_never_two_requests() {
    let server = TestServer::start(|_| ()).await;
    let smuggled = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let attempts = [
        format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"
        ),
    ];
    for attempt in attempts {
        let stream = server.send(attempt.as_bytes()).await;
        let answer = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
        assert!(!answer.contains("blip_http_requests_total"), "{attempt}\n{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shutdown_lets_requests_in_flight_finish_and_ends_idle_connections() {
    let server = TestServer::start(|_| ()).await;
    let mut idle = server.send(HEALTH).await;
    read_until(&mut idle, "\"ready\"}").await;
    server.app.control.hold();
    let body = json!({"image": base64(&png(1))}).to_string();
    let mut busy = server.send(&post("/caption", &body)).await;
    server.app.control.wait_until_held();
    server.shutdown.cancel();
    // The idle connection ends at once, without an answer.
    let rest = tokio::time::timeout(SOON, read_to_end(idle)).await.expect("closed");
    assert_eq!(rest, "");
    server.app.control.release();
    let answer = read_until(&mut busy, "\"model\"").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    let (app, drained) = server.stop().await;
    assert_eq!(drained.cut, 0);
    assert_eq!(app.metrics.http_connections.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_outlive_the_drain_time_are_cut() {
    let server = TestServer::start(|config| config.http.connections.drain_timeout = SHORT).await;
    server.app.control.hold();
    let body = json!({"image": base64(&png(1))}).to_string();
    let busy = server.send(&post("/caption", &body)).await;
    server.app.control.wait_until_held();
    let (app, drained) =
        tokio::time::timeout(SOON, server.stop()).await.expect("within the drain time");
    assert_eq!(drained.cut, 1);
    assert_eq!(read_to_end(busy).await, "");
    app.control.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let server = TestServer::start(|config| config.http.connections.write_timeout = SHORT).await;
    // Answers of some 100 KB each fill every buffer on the way, since nothing is read.
    let mut stream = server.connect().await;
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    // The server may hang up while this is being written.
    let _ = tokio::time::timeout(SOON, stream.write_all(&request)).await;
    let start = Instant::now();
    while server.app.metrics.http_connections.get() > 0 {
        assert!(start.elapsed() < SOON * 4, "still connected");
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_answer_of_a_connection_is_whole_for_a_client_that_reads_late() {
    let server = TestServer::start(|_| ()).await;
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n";
    let document =
        read_to_end(server.send(format!("{request}connection: close\r\n\r\n").as_bytes()).await)
            .await;
    let (_, document) = document.split_once("\r\n\r\n").expect("a body");
    // Far more answers than all buffers on the way hold.
    let requests =
        format!("{}{request}connection: close\r\n\r\n", format!("{request}\r\n").repeat(200));
    let mut stream = server.send(requests.as_bytes()).await;
    read_until(&mut stream, "HTTP/1.1 200").await;
    let answers = tokio::time::timeout(SOON * 4, read_to_end(stream)).await.expect("ends");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 200);
    assert!(answers.ends_with(document));
    server.stop().await;
}

/// The answer to HEAD has no body, so its connection never reads to the end of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_head_counts_as_answered() {
    let server = TestServer::start(|_| ()).await;
    let stream = server.send(b"HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let answer = read_to_end(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let labels = ["/", "HEAD", "200", "ok"];
    let counted = || server.app.metrics.http_requests_total.with_label_values(&labels).get();
    server.app.until("the request is counted", |_| counted() == 1).await;
    server.stop().await;
}
