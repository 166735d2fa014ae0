//! Bombs: requests of bytes or kilobytes that ask for gigabytes or minutes, and long ones that must be refused early.
//! Made in code, never stored.
//!
//! Short form: each kind once, its status checked, and the memory of all together. Long form: each kind 25 times on a
//! release build, answered within a second, the last 24 without growth of the process.

mod bits;
mod bmp;
mod bodies;
mod gif;
pub(super) mod jpeg;
pub(super) mod png;
mod webp;

use std::time::{Duration, Instant};

use super::memory::{growth_mib, resident_bytes};
use super::wire::{exchange, statuses};
use crate::support::TestServer;

/// Far above the time of any bomb, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pictures as large as any may be, decoded in full: many seconds where nothing is optimised, so the short form leaves
/// them out.
const FULL_SIZE: [&str; 16] = [
    "png 16-bit RGBA at the memory cap",
    "png interlaced grey of 16,384 x 3,000",
    "png 1 bit at the pixel cap",
    "gif 10,000 frames, the screen at the cap",
    "gif 9 megapixels pixel by pixel",
    "webp lossless at the pixel cap",
    "webp animation, canvas at the cap",
    "webp lossy frame at the cap without data",
    "jpeg 16,384 x 3,000 without data",
    "jpeg 12 scans at the pixel cap",
    "jpeg three scans apart at the pixel cap",
    "jpeg four progressive components at the pixel cap",
    "jpeg arithmetic without data at the pixel cap",
    "jpeg arithmetic with a byte at the pixel cap",
    "jpeg 12 arithmetic scans at the pixel cap",
    "bmp runs that end at once, at the cap",
];

/// A kind of bomb.
pub(super) struct Bomb {
    name: &'static str,
    /// A whole request.
    request: Vec<u8>,
    /// Any of these.
    expected: &'static [u16],
}

fn decoded() -> &'static [u16] {
    &[200]
}

fn undecodable() -> &'static [u16] {
    &[422]
}

fn too_large() -> &'static [u16] {
    &[422]
}

fn unsupported() -> &'static [u16] {
    &[415]
}

/// A picture file, as the raw body of a caption's request.
fn image(name: &'static str, file: Vec<u8>, expected: &'static [u16]) -> Bomb {
    body(name, "/caption", "application/octet-stream", file, expected)
}

fn body(
    name: &'static str,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
    expected: &'static [u16],
) -> Bomb {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.into_bytes(), body].concat();
    raw(name, request, expected)
}

fn raw(name: &'static str, request: Vec<u8>, expected: &'static [u16]) -> Bomb {
    Bomb { name, request, expected }
}

/// Every kind. A part at a time: together their requests are hundreds of megabytes.
fn kinds() -> [fn() -> Vec<Bomb>; 6] {
    [png::bombs, gif::bombs, webp::bombs, jpeg::bombs, bmp::bombs, bodies::bombs]
}

/// A server whose idle connections end soon, and that keeps no pictures, so that each bomb is a new one.
async fn server() -> TestServer {
    TestServer::start(|config| {
        let connections = &mut config.http.connections;
        connections.keep_alive = Duration::from_secs(1);
        connections.header_read_timeout = Duration::from_secs(1);
        connections.body_idle_timeout = Duration::from_secs(1);
        config.images.pixel_cache_bytes = 0;
        config.engine.feature_cache_bytes = 0;
    })
    .await
}

/// Sends a bomb; the time to its answer, which is one and of an expected status.
///
/// # Errors
/// Anything else, in words.
async fn drop_on(server: &TestServer, bomb: &Bomb) -> Result<Duration, String> {
    let start = Instant::now();
    let answer = exchange(server.address, &bomb.request, PATIENCE).await;
    let elapsed = start.elapsed();
    let seen = statuses(&answer.bytes).map_err(|error| format!("{}: {error}", bomb.name))?;
    if answer.timed_out {
        return Err(format!("{}: {seen:?}, and the connection did not end", bomb.name));
    }
    if seen.len() != 1 || !bomb.expected.contains(&seen[0]) {
        let told = String::from_utf8_lossy(&answer.bytes);
        return Err(format!("{}: {seen:?}, expected {:?}\n{told}", bomb.name, bomb.expected));
    }
    Ok(elapsed)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bomb_is_refused_or_answered_and_the_server_goes_on() {
    let server = server().await;
    let before = resident_bytes();
    let (mut count, mut full_size, mut faults) = (0, 0, Vec::new());
    for kind in kinds() {
        for bomb in kind() {
            count += 1;
            if FULL_SIZE.contains(&bomb.name) {
                full_size += 1;
            } else {
                faults.extend(drop_on(&server, &bomb).await.err());
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(full_size, FULL_SIZE.len(), "a name has changed");
    assert!(count >= 40, "{count} kinds");
    // Other tests of this binary run beside: what a single bomb could take is far above.
    let growth = growth_mib(before);
    assert!(growth < 1024.0, "{growth:.0} MiB more than before");
    let panics = server.app.metrics.panics_total.with_label_values(&["decode"]).get();
    assert_eq!(panics, 0, "decoders panicked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    const REPEATS: usize = 25;
    let server = server().await;
    let start = resident_bytes();
    let (mut count, mut faults) = (0, Vec::new());
    for kind in kinds() {
        for bomb in kind() {
            let mut slowest = drop_on(&server, &bomb).await.unwrap();
            slowest = slowest.max(drop_on(&server, &bomb).await.unwrap());
            let before = resident_bytes();
            for _ in 2..REPEATS {
                slowest = slowest.max(drop_on(&server, &bomb).await.unwrap());
            }
            let growth = growth_mib(before);
            eprintln!("{growth:8.2} MiB {:8.1} ms  {}", slowest.as_secs_f64() * 1e3, bomb.name);
            if growth >= 1.0 || slowest >= Duration::from_secs(1) {
                faults.push(format!("{}: {growth:.2} MiB, {slowest:?}", bomb.name));
            }
            count += 1;
        }
    }
    eprintln!("{count} kinds x {REPEATS}, {:.1} MiB more than at the start", growth_mib(start));
    let panics = server.app.metrics.panics_total.with_label_values(&["decode"]).get();
    eprintln!("panics of decoders: {panics}");
    eprintln!("over the bounds: {faults:#?}");
    server.stop().await;
}
