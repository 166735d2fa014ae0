//! Clients that leave at a random byte or a random time: nothing of them stays, and what only they wanted is not worked
//! on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::chance::Chance;
use super::client::Pool;
use super::process::Process;
use super::raw::{abandon, connect};
use super::scrape::Scrape;
use super::tally::Outcome;
use super::traffic::{Ask, Traffic};

const CLIENTS: u64 = 24;
/// Longer than a request takes on the server below, when it has to wait.
const PATIENCE: Duration = Duration::from_millis(200);
/// Slow enough that requests wait for each other.
const FLAGS: [&str; 2] = ["--image-us", "40000"];

/// Sends a request and leaves at a random point of it: within the head, within the body, while it waits or runs, or
/// while the answer is read.
pub(super) async fn leave(address: SocketAddr, traffic: &Traffic, index: u64) {
    let mut chance = Chance::new(index);
    let ask = match index % 2 {
        0 => Ask::picture("/caption", traffic.unseen(index)),
        _ => traffic.right(index),
    };
    let bytes = ask.to_bytes("leaves");
    let head = bytes.len() - ask.body.len();
    let mut stream = connect(address).await;
    let sent = match chance.below(4) {
        0 => chance.below(head),
        1 => head + chance.below(ask.body.len()),
        _ => bytes.len(),
    };
    // The server may have answered, and closed, before everything is written.
    let _ = stream.write_all(&bytes[..sent]).await;
    if sent == bytes.len() {
        let mut some = vec![0; 1 + chance.below(200)];
        let reads = chance.below(2) == 0;
        let reading = async {
            if reads {
                let _ = stream.read(&mut some).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(chance.time(PATIENCE), reading).await;
    }
    abandon(stream, chance.below(2) == 0);
}

/// Lets `count` clients come and leave.
async fn run(count: u64) {
    let server = Process::mock(&FLAGS, &[("LOG__SAMPLE_EVERY", "0")]);
    let address = server.address();
    let before = Scrape::of_deserted(address).await;
    let descriptors = server.usage().descriptors;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(async move {
            let traffic = Traffic::new();
            for index in (client..count).step_by(CLIENTS as usize) {
                leave(address, &traffic, index).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let after = Scrape::of_deserted(address).await;
    let grown = |name: &str| after.sum(name, &[]) - before.sum(name, &[]);
    let cancelled = grown("blip_queue_cancelled_total");
    let seen = after.requests() - before.requests();
    let left = after.requests_with(499);
    eprintln!(
        "{count} clients left; requests seen {seen}, of these left unanswered {left}; \
         tasks cancelled {cancelled}, images encoded {}; {:?}",
        grown("blip_images_encoded_total"),
        server.usage()
    );
    assert!(cancelled > 0 && left > 0, "cancelled {cancelled}, left {left}");
    assert!(seen <= count && left <= seen, "seen {seen}, left {left}");
    for status in [500, 504] {
        assert_eq!(after.requests_with(status), 0, "status {status}");
    }
    // The last scrape's own connection may be closing yet.
    assert!(
        server.usage().descriptors <= descriptors + 1,
        "{:?}, {descriptors} before",
        server.usage()
    );
    let still = Pool::new(address).ask(&Traffic::new().right(0), Duration::from_secs(30)).await;
    assert_eq!(still, Outcome::Answer(200, None));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_at_any_point_leave_nothing_behind() {
    run(300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    run(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_abandoned_while_it_waited_never_reaches_the_model() {
    const WAITING: u64 = 24;
    let settings = [
        ("ENGINE__MAX_BATCH_IMAGES", "1"),
        ("ENGINE__MAX_QUEUE_WAIT_MS", "600000"),
        ("SERVER__DEADLINE_MS", "600000"),
    ];
    let server = Process::mock(&["--image-us", "700000"], &settings);
    let traffic = Traffic::new();
    let mut streams = Vec::new();
    for index in 0..=WAITING {
        let mut stream = connect(server.address()).await;
        let ask = Ask::picture("/caption", traffic.unseen(index));
        stream.write_all(&ask.to_bytes("leaves")).await.unwrap();
        streams.push(stream);
    }
    // One image is being encoded; on a busy machine a few have been already.
    let waiting =
        |scrape: &Scrape| scrape.sum("blip_queue_depth", &[("stage", "vision")]) >= WAITING - 4;
    let queued = Scrape::when(server.address(), "nearly all wait", waiting).await;
    for (index, stream) in streams.into_iter().enumerate() {
        abandon(stream, index % 2 == 0);
    }
    let idle = Scrape::of_deserted(server.address()).await;
    let encoded = |scrape: &Scrape| scrape.sum("blip_images_encoded_total", &[]);
    // The one that was being encoded, and one more where it ended just then.
    let worked_on = encoded(&idle) - encoded(&queued);
    assert!(worked_on <= 2, "{worked_on} images were encoded for nobody");
    let cancelled = idle.sum("blip_queue_cancelled_total", &[]);
    assert!(cancelled >= WAITING - 5, "{cancelled} cancelled");
    let still = Pool::new(server.address()).ask(&traffic.right(2), Duration::from_secs(30)).await;
    assert_eq!(still, Outcome::Answer(200, None));
    server.stop().await;
}
