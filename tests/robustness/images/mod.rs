//! Damaged pictures, each sent as a raw body, in a multipart part and in base64: refused or answered, never a failure,
//! never a connection that breaks off, whatever decoders make of them.

pub(super) mod corpus;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::corpus::Corpus;
use super::memory::{growth_mib, resident_bytes};
use super::wire::Client;
use crate::support::inputs::BOUNDARY;
use crate::support::{Multipart, TestServer, base64};

/// What a damaged picture may be answered with.
const EXPECTED: [u16; 4] = [200, 413, 415, 422];

/// Far above the time of any picture of a few kilobytes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a file in one of its three encodings; the status, and the answer's body.
async fn send(client: &mut Client, file: &[u8], encoding: usize) -> Result<u16, String> {
    let json = || format!("{{\"image\": \"{}\"}}", base64(file)).into_bytes();
    let (content_type, body) = match encoding {
        0 => ("application/octet-stream".to_owned(), file.to_vec()),
        1 => {
            let parts = Multipart::default().file("image", file).finish();
            (format!("multipart/form-data; boundary={BOUNDARY}"), parts)
        }
        _ => ("application/json".to_owned(), json()),
    };
    let sent = tokio::time::timeout(PATIENCE, client.post("/caption", &content_type, &body));
    sent.await.map_err(|_| "no answer in time".to_owned())?
}

/// What a run saw.
#[derive(Debug, Default)]
struct Seen {
    statuses: BTreeMap<u16, u64>,
    slowest: Duration,
}

/// Sends the files of these numbers in all encodings.
async fn run(server: &TestServer, files: std::ops::Range<u64>) -> Seen {
    let corpus = Corpus::load();
    let mut client = Client::new(server.address);
    let mut seen = Seen::default();
    for number in files {
        let file = corpus.file(number);
        // An empty raw body is no image.
        if file.is_empty() {
            continue;
        }
        let mut answers = [0; 3];
        for (encoding, answer) in answers.iter_mut().enumerate() {
            let start = Instant::now();
            let sent = send(&mut client, &file, encoding).await;
            let status =
                sent.unwrap_or_else(|error| panic!("file {number}, encoding {encoding}: {error}"));
            assert!(EXPECTED.contains(&status), "file {number}: {status} {}", client.body());
            seen.slowest = seen.slowest.max(start.elapsed());
            *seen.statuses.entry(status).or_default() += 1;
            *answer = status;
        }
        assert!(answers.iter().all(|status| *status == answers[0]), "file {number}: {answers:?}");
    }
    seen
}

fn panics(server: &TestServer) -> u64 {
    server.app.metrics.panics_total.with_label_values(&["decode"]).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pictures_are_refused_or_answered_the_same_in_every_encoding() {
    let server = TestServer::start(|_| ()).await;
    let seen = run(&server, 0..200).await;
    // Some are still pictures, most are not.
    assert!(seen.statuses.contains_key(&200) && seen.statuses.contains_key(&422), "{seen:?}");
    assert_eq!(panics(&server), 0, "decoders panicked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undamaged_pictures_of_every_variant_are_answered() {
    let server = TestServer::start(|_| ()).await;
    let mut client = Client::new(server.address);
    for (name, file) in &Corpus::load().seeds {
        let status = send(&mut client, file, 0).await.unwrap();
        assert_eq!(status, 200, "{name}: {}", client.body());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_cut_at_any_percent_is_refused() {
    let server = TestServer::start(|_| ()).await;
    let mut client = Client::new(server.address);
    let corpus = Corpus::load();
    let cut = [
        "baseline.jpg",
        "progressive.jpg",
        "rgb.png",
        "rgb-interlaced.png",
        "lossy.webp",
        "lossless.webp",
        "still.gif",
        "interlaced.gif",
        "rgb.bmp",
        "palette.bmp",
    ];
    for (name, file) in corpus.seeds.iter().filter(|(name, _)| cut.contains(&name.as_str())) {
        for percent in 1..100 {
            // The last bytes may be an end marker alone, without which the picture is still whole.
            let length = (file.len() * percent / 100).min(file.len() - 24);
            let status = send(&mut client, &file[..length.max(1)], 0).await.unwrap();
            assert!([415, 422].contains(&status), "{name} at {percent} %: {status}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    let server = TestServer::start(|_| ()).await;
    run(&server, 0..500).await;
    let (before, start) = (resident_bytes(), Instant::now());
    let seen = run(&server, 500..10_550).await;
    let growth = growth_mib(before);
    eprintln!("files x 3: {seen:?} in {:?}, {growth:.1} MiB of growth", start.elapsed());
    eprintln!("panics of decoders: {}", panics(&server));
    // The cache of pixels is on, and the decoders' budget may be in use.
    assert!(growth < 128.0 + 256.0, "{growth} MiB");
    server.stop().await;
}
