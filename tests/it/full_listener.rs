//! More connections than places: who makes room for whom, and who is answered meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::server::read_to_end;
use crate::support::{TestApp, TestServer, base64, png};

const SOON: Duration = Duration::from_secs(8);
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
const LAST: &[u8] = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const INFO: &[u8] = b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n";

/// All of 127.0.0.0/8 is this machine.
const CROWD: &str = "127.0.0.2";
const ONE: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.3";

async fn with_places(places: usize) -> TestServer {
    TestServer::start(|config| config.http.connections.max_connections = places).await
}

/// A connection from this address, on which these bytes were sent.
async fn send(server: &TestServer, from: &str, bytes: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// An open connection from this address that has asked for its health and is idle since.
async fn idle(server: &TestServer, from: &str) -> TcpStream {
    let mut stream = send(server, from, HEALTH).await;
    answered(&mut stream).await;
    stream
}

/// One whole answer.
async fn answered(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !is_whole(&bytes) {
            let read = stream.read_buf(&mut bytes).await.expect("a readable connection");
            assert!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&bytes));
        }
    };
    tokio::time::timeout(SOON, read).await.expect("answered");
    String::from_utf8(bytes).expect("text")
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let (_, length) = head.split_once("content-length: ").expect("a length");
    length.split("\r\n").next() == Some(&body.len().to_string())
}

/// `/info` on a new connection from this address, which stays open.
async fn served(server: &TestServer, from: &str) -> TcpStream {
    let mut stream = send(server, from, INFO).await;
    let answer = answered(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream
}

async fn is_closed(stream: TcpStream) {
    let rest = tokio::time::timeout(SOON, read_to_end(stream)).await.expect("closed");
    assert_eq!(rest, "");
}

async fn is_open(stream: &mut TcpStream) {
    stream.write_all(HEALTH).await.expect("open");
    let answer = answered(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A caption that the worker holds: its request is in progress.
async fn busy(server: &TestServer, from: &str, seed: u8) -> TcpStream {
    let before = server.app.metrics.http_requests_in_flight.get();
    let body = json!({"image": base64(&png(seed))}).to_string();
    let request = format!(
        "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = send(server, from, request.as_bytes()).await;
    server
        .app
        .until("in flight", |app| app.metrics.http_requests_in_flight.get() == before + 1)
        .await;
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn idle_connections_of_one_address_shut_no_other_client_out() {
    let server = with_places(4).await;
    let mut crowd = Vec::new();
    for _ in 0..4 {
        crowd.push(idle(&server, CROWD).await);
    }
    let mut one = served(&server, ONE).await;
    let mut other = served(&server, OTHER).await;
    let mut crowd = crowd.into_iter();
    is_closed(crowd.next().unwrap()).await;
    is_closed(crowd.next().unwrap()).await;
    for stream in [&mut one, &mut other] {
        is_open(stream).await;
    }
    for mut stream in crowd {
        is_open(&mut stream).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_address_alone_may_use_every_place_and_then_replaces_its_own_longest_idle() {
    let server = with_places(3).await;
    let mut first = idle(&server, ONE).await;
    let second = idle(&server, ONE).await;
    let mut third = idle(&server, ONE).await;
    is_open(&mut first).await;
    let mut fourth = served(&server, ONE).await;
    is_closed(second).await;
    for stream in [&mut first, &mut third, &mut fourth] {
        is_open(stream).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_says_nothing_and_heads_that_do_not_end_make_room_too() {
    for bytes in [&b""[..], b"GET /hea"] {
        let server = with_places(2).await;
        let first = send(&server, CROWD, bytes).await;
        let second = send(&server, CROWD, bytes).await;
        server.app.until("two", |app| app.metrics.http_connections.get() == 2).await;
        let mut one = served(&server, ONE).await;
        // Which one depends on whose bytes the server has seen.
        tokio::select! {
            () = is_closed(first) => {}
            () = is_closed(second) => {}
        }
        is_open(&mut one).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_in_progress_are_never_cut_and_health_and_metrics_answer_beside_them() {
    let server = with_places(2).await;
    server.app.control.hold();
    let mut requests = [busy(&server, CROWD, 1).await, busy(&server, CROWD, 2).await];
    // Silent connections do not use up what is kept for health.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(send(&server, CROWD, b"").await);
    }
    for from in [ONE, CROWD] {
        let refused = read_to_end(send(&server, from, INFO).await);
        let refused = tokio::time::timeout(SOON, refused).await.expect("refused at once");
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert!(refused.contains("\"code\":\"overloaded\""), "{refused}");
        let head = refused.to_lowercase();
        assert!(head.contains("connection: close"), "{refused}");
        assert!(head.contains("retry-after: "), "{refused}");
        for path in ["/health", "/health/live", "/health/ready", "/metrics"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            let answer = read_to_end(send(&server, from, request.as_bytes()).await);
            let answer = tokio::time::timeout(SOON, answer).await.expect("answered");
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            assert!(answer.to_lowercase().contains("connection: close"), "{path}: {answer}");
        }
    }
    server.app.control.release();
    for stream in &mut requests {
        let answer = answered(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_whose_bodies_do_not_arrive_shut_no_other_client_out() {
    let server = with_places(2).await;
    let begun = b"POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{";
    let first = send(&server, CROWD, begun).await;
    let in_flight = |app: &TestApp, count| app.metrics.http_requests_in_flight.get() == count;
    server.app.until("the first", |app| in_flight(app, 1)).await;
    let mut second = send(&server, CROWD, begun).await;
    server.app.until("both", |app| in_flight(app, 2)).await;
    let mut one = served(&server, ONE).await;
    let refused = tokio::time::timeout(SOON, read_to_end(first)).await.expect("answered");
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("\"code\":\"overloaded\""), "{refused}");
    assert!(refused.to_lowercase().contains("connection: close"), "{refused}");
    // The other address has its share now.
    is_open(&mut one).await;
    let rest = format!("\"image\":\"{}\"", base64(&png(1)));
    second.write_all(format!("{rest}{:1$}}}", "", 898 - rest.len()).as_bytes()).await.unwrap();
    let answer = answered(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_address_within_its_share_keeps_its_idle_connections() {
    let server = with_places(4).await;
    // The oldest of all is not of the address that holds the most.
    let mut one = idle(&server, ONE).await;
    let mut crowd = Vec::new();
    for _ in 0..3 {
        crowd.push(idle(&server, CROWD).await);
    }
    let _other = served(&server, OTHER).await;
    is_closed(crowd.remove(0)).await;
    is_open(&mut one).await;
    // A newcomer of the crowd replaces one of the crowd.
    let _more = served(&server, CROWD).await;
    is_closed(crowd.remove(0)).await;
    is_open(&mut one).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_answer_that_is_still_being_sent_is_no_idle_connection() {
    let server = with_places(1).await;
    // Far more answers than all buffers on the way hold; the client reads them later.
    let requests = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(400);
    let mut slow = send(&server, CROWD, &requests).await;
    slow.write_all(LAST).await.unwrap();
    let mut bytes = vec![0; 8];
    slow.read_exact(&mut bytes).await.unwrap();
    // Refused, or served because the slow one had just nothing to send: it is never cut in the middle of an answer.
    let request = b"GET /info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let next = read_to_end(send(&server, ONE, request).await);
    tokio::time::timeout(SOON, next).await.expect("answered");
    let rest = slow.read_to_end(&mut bytes);
    tokio::time::timeout(SOON, rest).await.expect("ends").expect("no reset");
    let text = String::from_utf8(bytes).unwrap();
    let answers: Vec<&str> = text.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    assert!(!answers.is_empty());
    for answer in answers {
        assert!(is_whole(answer.as_bytes()), "{}", answer.len());
    }
    server.stop().await;
}
