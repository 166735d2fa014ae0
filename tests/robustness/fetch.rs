//! Hosts that answer badly, slowly, without end or not at all: whatever an image's host does, the call is answered in
//! time, with one text for all of it, and nothing of the fetch is left.

use std::time::{Duration, Instant};

use blip_server::input::InputSettings;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::app::{TestConfig, json_request};
use crate::support::origin::{any_loopback, fetching, ok, redirect};
use crate::support::{Origin, TestApp, png};

/// Longest time of a fetch in these tests.
const TOTAL: Duration = Duration::from_millis(400);
/// Largest image file in these tests.
const MAX_BYTES: usize = 64 << 10;

/// What a host does with a connection.
#[derive(Debug, Clone, Copy)]
enum Fault {
    CloseBeforeHead,
    ResetBeforeHead,
    StallBeforeHead,
    StallInHead,
    StallInBody,
    ResetInBody,
    SlowDrip,
    SlowDripOfHead,
    ShortBody,
    AnnouncesTooMuch,
    LengthIsNoNumber,
    TwoLengths,
    EndlessChunks,
    EndlessUntilClose,
    OneByteChunks,
    BrokenChunk,
    EndlessHead,
    EndlessContinue,
    NoHttp,
    Gzip,
    Redirects,
    RedirectToBadScheme,
    RedirectToInside,
    RedirectNowhere,
    Status(u16),
}

const FAULTS: [(Fault, &str); 34] = [
    (Fault::CloseBeforeHead, "unreachable"),
    (Fault::ResetBeforeHead, "unreachable"),
    (Fault::StallBeforeHead, "timeout"),
    (Fault::StallInHead, "timeout"),
    (Fault::StallInBody, "timeout"),
    (Fault::ResetInBody, "unreachable"),
    (Fault::SlowDrip, "timeout"),
    (Fault::SlowDripOfHead, "timeout"),
    (Fault::ShortBody, "unreachable"),
    (Fault::AnnouncesTooMuch, "too_large"),
    (Fault::LengthIsNoNumber, "unreachable"),
    (Fault::TwoLengths, "unreachable"),
    (Fault::EndlessChunks, "too_large"),
    (Fault::EndlessUntilClose, "too_large"),
    // As fast as the machine is.
    (Fault::OneByteChunks, "too_large|timeout"),
    (Fault::BrokenChunk, "unreachable"),
    (Fault::EndlessHead, "unreachable"),
    (Fault::EndlessContinue, "timeout"),
    (Fault::NoHttp, "unreachable"),
    (Fault::Gzip, "status"),
    (Fault::Redirects, "redirect"),
    (Fault::RedirectToBadScheme, "blocked"),
    (Fault::RedirectToInside, "blocked"),
    (Fault::RedirectNowhere, "redirect"),
    (Fault::Status(201), "status"),
    (Fault::Status(204), "status"),
    (Fault::Status(206), "status"),
    (Fault::Status(300), "status"),
    (Fault::Status(304), "status"),
    (Fault::Status(401), "status"),
    (Fault::Status(404), "status"),
    (Fault::Status(429), "status"),
    (Fault::Status(500), "status"),
    (Fault::Status(503), "status"),
];

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n";

impl Fault {
    async fn commit(self, mut stream: TcpStream) -> std::io::Result<()> {
        match self {
            Self::CloseBeforeHead => Ok(()),
            Self::ResetBeforeHead => stream.set_zero_linger(),
            Self::StallBeforeHead => wait_for_close(stream).await,
            Self::StallInHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await?;
                wait_for_close(stream).await
            }
            Self::StallInBody => {
                stream.write_all(&ok(&png(1))[..60]).await?;
                wait_for_close(stream).await
            }
            Self::ResetInBody => {
                stream.write_all(&ok(&png(1))[..60]).await?;
                stream.set_zero_linger()
            }
            Self::SlowDrip => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n").await?;
                drip(stream, b"x").await
            }
            Self::SlowDripOfHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await?;
                drip(stream, b"x").await
            }
            Self::EndlessContinue => drip(stream, b"HTTP/1.1 100 Continue\r\n\r\n").await,
            Self::EndlessChunks => {
                let chunk = [b"400\r\n".as_slice(), &[b'x'; 1024], b"\r\n"].concat();
                endless(stream, b"transfer-encoding: chunked\r\n\r\n", &chunk).await
            }
            Self::OneByteChunks => {
                endless(stream, b"transfer-encoding: chunked\r\n\r\n", &b"1\r\nx\r\n".repeat(1000))
                    .await
            }
            Self::EndlessUntilClose => endless(stream, b"\r\n", &[b'x'; 1024]).await,
            Self::EndlessHead => endless(stream, b"", &b"x-more: and more\r\n".repeat(100)).await,
            Self::ShortBody
            | Self::AnnouncesTooMuch
            | Self::LengthIsNoNumber
            | Self::TwoLengths
            | Self::BrokenChunk
            | Self::NoHttp
            | Self::Gzip
            | Self::Redirects
            | Self::RedirectToBadScheme
            | Self::RedirectToInside
            | Self::RedirectNowhere
            | Self::Status(_) => stream.write_all(&self.answer()).await,
        }
    }

    /// What it sends before it closes the connection.
    fn answer(self) -> Vec<u8> {
        let with = |fields: &str| [HEAD, fields.as_bytes(), b"\r\n\r\n", &png(1)].concat();
        match self {
            Self::ShortBody => with("content-length: 9999"),
            Self::AnnouncesTooMuch => with(&format!("content-length: {}", MAX_BYTES + 1)),
            Self::LengthIsNoNumber => with("content-length: many"),
            Self::TwoLengths => with("content-length: 10\r\ncontent-length: 11"),
            Self::BrokenChunk => with("transfer-encoding: chunked"),
            Self::NoHttp => b"220 mail.example ESMTP\r\n".to_vec(),
            Self::Gzip => with("content-encoding: gzip"),
            Self::Redirects => redirect("/again"),
            Self::RedirectToBadScheme => redirect("file:///etc/passwd"),
            Self::RedirectToInside => redirect("http://10.0.0.1/"),
            Self::RedirectNowhere => b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            Self::Status(code) => format!("HTTP/1.1 {code} X\r\n\r\n").into_bytes(),
            Self::CloseBeforeHead
            | Self::ResetBeforeHead
            | Self::StallBeforeHead
            | Self::StallInHead
            | Self::StallInBody
            | Self::ResetInBody
            | Self::SlowDrip
            | Self::SlowDripOfHead
            | Self::EndlessChunks
            | Self::EndlessUntilClose
            | Self::OneByteChunks
            | Self::EndlessHead
            | Self::EndlessContinue => panic!("{self:?} is more than one answer"),
        }
    }
}

async fn wait_for_close(mut stream: TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

/// A piece every 20 ms until the client has had enough.
async fn drip(mut stream: TcpStream, piece: &[u8]) -> std::io::Result<()> {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    loop {
        pause.tick().await;
        stream.write_all(piece).await?;
    }
}

/// As fast as it goes until the client has had enough.
async fn endless(mut stream: TcpStream, fields: &[u8], piece: &[u8]) -> std::io::Result<()> {
    stream.write_all(HEAD).await?;
    stream.write_all(fields).await?;
    loop {
        stream.write_all(piece).await?;
    }
}

async fn origin_with(fault: Fault) -> Origin {
    let answer = move |_, stream| async move { drop(fault.commit(stream).await) };
    Origin::start("127.0.0.1:0".parse().unwrap(), answer).await.unwrap()
}

fn service(origin: &Origin, change: impl FnOnce(&mut TestConfig)) -> TestApp {
    TestApp::with(|config| {
        fetching(config, &std::sync::Arc::default(), origin.address.port(), any_loopback);
        config.http.input =
            InputSettings { max_image_bytes: MAX_BYTES, ..InputSettings::default() };
        config.fetch.as_mut().unwrap().0.total_timeout = TOTAL;
        change(config);
    })
}

/// Every fault, `rounds` times; how many requests that were.
async fn run(rounds: usize) -> usize {
    let mut texts = Vec::new();
    for (fault, result) in FAULTS {
        let origin = origin_with(fault).await;
        let app = service(&origin, |_| ());
        for round in 1..=rounds as u64 {
            let began = Instant::now();
            let answer = app.json("/caption", &json!({"image": origin.url("/a.png")})).await;
            let took = began.elapsed();
            assert_eq!(answer.status, 422, "{fault:?}: {}", answer.text());
            let problem = answer.refused(422, "url_unreachable");
            assert!(took < 4 * TOTAL, "{fault:?} took {took:?}");
            texts.push((
                problem["title"].clone(),
                problem["detail"].clone(),
                problem["errors"].clone(),
            ));
            let count = |result| app.metrics.fetch_total.with_label_values(&[result]).get();
            assert_eq!(
                result.split('|').map(count).sum::<u64>(),
                round,
                "{fault:?} counts as {result}"
            );
        }
        app.until("no connection is left", |_| origin.open() == 0).await;
    }
    let (count, first) = (texts.len(), texts[0].clone());
    assert!(texts.iter().all(|text| *text == first), "one text for whatever went wrong: {texts:?}");
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_host_does_wrong_the_call_is_answered_in_time_and_in_one_text() {
    assert_eq!(run(1).await, FAULTS.len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    let began = Instant::now();
    let requests = run(30).await;
    eprintln!(
        "{} kinds of bad hosts, {requests} requests in {:.1} s, all 422 in one text",
        FAULTS.len(),
        began.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_largest_size_is_fetched_and_one_byte_more_is_not() {
    let mut picture = png(1);
    for (size, status) in [(MAX_BYTES, 200), (MAX_BYTES + 1, 422)] {
        // What follows a PNG's end does not matter.
        picture.resize(size, 0);
        let chunked = format!("transfer-encoding: chunked\r\n\r\n{size:x}\r\n");
        let chunked = [HEAD, chunked.as_bytes(), &picture, b"\r\n0\r\n\r\n"].concat();
        for answer in [ok(&picture), chunked, [HEAD, b"\r\n", &picture].concat()] {
            let origin = Origin::sending(answer).await;
            let app = service(&origin, |_| ());
            let answer = app.json("/caption", &json!({"image": origin.url("/")})).await;
            assert_eq!(answer.status, status, "{size}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requests_own_deadline_ends_a_fetch_sooner() {
    let origin = origin_with(Fault::StallInBody).await;
    let app = service(&origin, |config| {
        config.fetch.as_mut().unwrap().0.total_timeout = Duration::from_secs(60);
    });
    let mut request = json_request("/caption", &json!({"image": origin.url("/")}));
    request.headers_mut().insert("x-request-timeout-ms", "200".parse().unwrap());
    app.send(request).await.refused(504, "deadline_exceeded");
    app.until("the connection is closed", |_| origin.open() == 0).await;
    assert_eq!(app.metrics.fetch_total.with_label_values(&["timeout"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_its_fetch_and_gives_its_bytes_back() {
    let origin = origin_with(Fault::StallInBody).await;
    let app = service(&origin, |config| {
        config.fetch.as_mut().unwrap().0.total_timeout = Duration::from_secs(60);
    });
    let request = json_request("/caption", &json!({"image": origin.url("/")}));
    let router = app.router.clone();
    let call = tokio::spawn(async move { tower::ServiceExt::oneshot(router, request).await });
    app.until("the host is asked", |_| origin.open() == 1).await;
    assert_eq!(app.metrics.fetch_permits_in_use.get(), 1, "the file has its place");
    assert!(app.metrics.queue_bytes.get() > 0, "the pixels are reserved");
    call.abort();
    app.until("the connection is closed", |_| origin.open() == 0).await;
    app.until("the place is given back", |app| app.metrics.fetch_permits_in_use.get() == 0).await;
    app.until("the bytes are given back", |app| app.metrics.queue_bytes.get() == 0).await;
}

/// The body of a batch call with so many URLs, all of them different.
fn batch(origin: &Origin, urls: usize) -> serde_json::Value {
    let input = |index| json!({"image": origin.url(&format!("/{index}.png"))});
    json!({"inputs": (0..urls).map(input).collect::<Vec<_>>()})
}

/// Files of the default size may come.
fn with_large_files(config: &mut TestConfig) {
    config.http.input = InputSettings::default();
    config.fetch.as_mut().unwrap().0.total_timeout = Duration::from_secs(60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_urls_whose_largest_files_would_not_fit_beside_each_other_is_answered() {
    let origin = Origin::sending(ok(&png(1))).await;
    let app = service(&origin, with_large_files);
    let largest = 64 * InputSettings::default().max_image_bytes as u64;
    assert!(largest > app.handle.settings().capacity_bytes);
    let answer = app.json("/caption/batch", &batch(&origin, 64)).await.ok();
    assert_eq!((&answer["failed"], origin.connections()), (&json!(0), 64), "{answer}");
    assert_eq!(app.metrics.fetch_permits_in_use.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_a_slow_host_leave_room_for_others_and_nothing_when_they_leave() {
    const CALLS: usize = 8;
    const URLS: usize = 16;
    let origin = origin_with(Fault::StallBeforeHead).await;
    let app = service(&origin, with_large_files);
    let largest = (CALLS * URLS * InputSettings::default().max_image_bytes) as u64;
    assert!(largest > app.handle.settings().capacity_bytes);
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let request = json_request("/caption/batch", &batch(&origin, URLS));
            let router = app.router.clone();
            tokio::spawn(async move { tower::ServiceExt::oneshot(router, request).await })
        })
        .collect();
    let bound = blip_server::fetch::FetchSettings::default().max_concurrent;
    app.until("all are admitted", |app| app.handle.rows() == CALLS * URLS).await;
    app.until("the host is asked", |_| origin.open() == bound).await;
    assert_eq!(app.metrics.fetch_permits_in_use.get(), i64::try_from(bound).unwrap());
    app.raw("/caption", "image/png", png(2)).await.ok();
    assert!(calls.iter().all(|call| !call.is_finished()), "they wait still");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    app.until("the connections are closed", |_| origin.open() == 0).await;
    app.until("the places are free", |app| app.metrics.fetch_permits_in_use.get() == 0).await;
    app.until("the bytes are given back", |app| app.metrics.queue_bytes.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_above_the_bound_wait_and_are_refused_when_their_time_is_over() {
    let origin = origin_with(Fault::StallInBody).await;
    let app = service(&origin, |config| {
        let (settings, _) = config.fetch.as_mut().unwrap();
        (settings.max_concurrent, settings.total_timeout) = (1, Duration::from_secs(60));
    });
    let request = json_request("/caption", &json!({"image": origin.url("/")}));
    let router = app.router.clone();
    let first = tokio::spawn(async move { tower::ServiceExt::oneshot(router, request).await });
    app.until("the host is asked", |_| origin.open() == 1).await;
    let mut second = json_request("/caption", &json!({"image": origin.url("/")}));
    second.headers_mut().insert("x-request-timeout-ms", "100".parse().unwrap());
    app.send(second).await.refused(504, "deadline_exceeded");
    assert_eq!(origin.connections(), 1, "the second waited for its turn");
    first.abort();
}
