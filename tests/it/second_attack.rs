//! Attacks that lay between the parts: bodies that do not come, one client that wants everything, an end while calls wait.
//! Attackers and others come from different loopback addresses where fairness between clients is meant.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use blip_server::images::ImagesSettings;
use image::ImageFormat;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::inputs::{BOUNDARY, Multipart, picture};
use crate::support::server::read_to_end;
use crate::support::{TestApp, TestServer, base64, png};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection from this loopback address.
async fn connect_from(server: &TestServer, address: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::from(address), 0))).unwrap();
    socket.connect(server.address).await.unwrap()
}

const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const OTHER: [u8; 4] = [127, 0, 0, 3];

fn post(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Pictures that take a thread some tens of milliseconds, each of its own.
fn large_pictures(marks: Range<u8>) -> Multipart {
    marks.fold(Multipart::default(), |parts, mark| {
        parts.file("image", &picture(mark, 2000, 1500, ImageFormat::Png))
    })
}

/// A connection of the attacker on which a batch of large pictures was sent.
async fn send_batch(server: &TestServer, marks: Range<u8>) -> TcpStream {
    let body = large_pictures(marks).finish();
    let head = format!(
        "POST /caption/batch HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect_from(server, ATTACKER).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream
}

async fn caption(server: &TestServer, shade: u8) -> String {
    let mut stream = connect_from(server, OTHER).await;
    let body = json!({"image": base64(&png(shade))}).to_string();
    stream.write_all(&post("/caption", &body)).await.unwrap();
    tokio::time::timeout(PATIENCE, read_to_end(stream)).await.expect("an answer")
}

/// D1: room was taken for the declared body.
#[tokio::test(flavor = "multi_thread")]
async fn declared_bodies_that_do_not_arrive_shut_no_other_client_out() {
    let server = TestServer::start(|config| {
        config.engine.capacity_rows = 8;
        config.http.limits.max_rows = 8;
    })
    .await;
    let most = server.app.state.settings().limits.max_body_bytes;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = connect_from(&server, ATTACKER).await;
        let head = format!(
            "POST /caption HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {most}\r\n\r\nx"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    // Each head has been read once its one byte is counted.
    while server.app.metrics.queue_bytes.get() < 20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        (server.app.metrics.queue_rows.get(), server.app.metrics.queue_bytes.get()),
        (0, 20)
    );
    for shade in 0..10 {
        let answer = caption(&server, shade).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(silent);
    server.stop().await;
}

/// D3: one call's pictures stood before everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn one_batch_of_large_pictures_does_not_hold_up_the_pictures_of_others() {
    let server = TestServer::start(|config| {
        config.images = ImagesSettings { decode_threads: 2, ..ImagesSettings::default() };
    })
    .await;
    let batch = send_batch(&server, 0..40).await;
    while server.app.metrics.decode_permits_in_use.get() < 2 {
        tokio::task::yield_now().await;
    }
    for shade in 0..3 {
        let answer = caption(&server, shade).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let mut byte = [0];
    let unanswered = batch.try_read(&mut byte).is_err();
    assert!(unanswered, "the others' pictures came before the end of the batch");
    drop(batch);
    server.stop().await;
}

/// D4: what nobody waited for any more stayed in the queue, with its file.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_clients_that_left_leave_the_decoding_queue_at_once() {
    let server = TestServer::start(|config| {
        config.images = ImagesSettings { decode_threads: 1, ..ImagesSettings::default() };
    })
    .await;
    for number in 0..4 {
        let stream = send_batch(&server, number * 40..(number + 1) * 40).await;
        while server.app.metrics.decode_permits_in_use.get() == 0 {
            tokio::task::yield_now().await;
        }
        drop(stream);
        // All that is left is what a thread has in hand: its call's room ends with it.
        while server.app.metrics.queue_bytes.get() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(
        server.app.metrics.image_pixels.get_sample_count() < 40,
        "abandoned pictures were decoded"
    );
    server.stop().await;
}

/// D5: calls whose bodies or pictures were still on their way were cut at the end of the drain time, with exit code 0.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_drain_time_every_call_is_answered_whatever_it_waits_for() {
    let app = TestApp::with(|config| {
        config.images = ImagesSettings { decode_threads: 1, ..ImagesSettings::default() };
    });
    let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
    let body = Request::post("/caption").header("content-type", "image/png");
    let reading = app.send(body.body(Body::from_stream(never)).unwrap());
    let decoding = app.multipart("/caption/batch", large_pictures(0..20));
    let abort = async {
        while app.metrics.decode_permits_in_use.get() == 0 {
            tokio::task::yield_now().await;
        }
        app.handle.abort();
    };
    let answers = async { tokio::join!(reading, decoding, abort) };
    let (reading, decoding, ()) =
        tokio::time::timeout(PATIENCE, answers).await.expect("answers at once");
    reading.refused(503, "shutting_down");
    let decoding = decoding.ok();
    let last = &decoding["results"][19];
    assert_eq!(last["error"]["code"], "shutting_down", "{decoding}");
}

/// Rows and bytes that one client has taken leave room for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fills_the_queue_does_not_shut_out_another() {
    let server = TestServer::start(|config| {
        config.engine.capacity_rows = 8;
        config.http.limits.max_rows = 8;
    })
    .await;
    server.app.control.hold();
    let body = json!({"image": base64(&png(1)), "num_beams": 8}).to_string();
    let mut full = connect_from(&server, ATTACKER).await;
    full.write_all(&post("/caption", &body)).await.unwrap();
    while server.app.metrics.queue_rows.get() < 8 {
        tokio::task::yield_now().await;
    }
    let mut second = connect_from(&server, ATTACKER).await;
    second.write_all(&post("/caption", &body)).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, read_to_end(second)).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let other = caption(&server, 2);
    let released = async {
        while server.app.metrics.queue_rows.get() < 9 {
            tokio::task::yield_now().await;
        }
        server.app.control.release();
    };
    let (answer, ()) = tokio::join!(other, released);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut first = String::new();
    full.read_to_string(&mut first).await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    server.stop().await;
}
