//! Every fault of the way, before every endpoint: what gets through is answered well, what does not leaves nothing
//! behind, and no fault of a client becomes a failure of the server.

use std::sync::Arc;
use std::time::Duration;

use super::client::Pool;
use super::process::Process;
use super::scrape::Scrape;
use super::tally::Tally;
use super::toxics::{FaultProxy, Toxic};
use super::traffic::{Ask, Traffic};
use tokio::task::JoinSet;

/// Requests under way through one proxy.
const CLIENTS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the server: a client that is cut off is noticed by what is read or written next.
const SETTINGS: [(&str, &str); 1] = [("LOG__SAMPLE_EVERY", "0")];
const ENDPOINTS: usize = 5;

/// The endpoints, each with a request.
fn asks(traffic: &Traffic) -> [Ask; ENDPOINTS] {
    [
        Ask::picture("/caption", traffic.unseen(0)),
        Ask::picture("/vqa?question=what", traffic.unseen(1)),
        Ask::picture("/similarity?texts=a&texts=b", traffic.unseen(2)),
        Ask::picture("/embeddings", traffic.unseen(3)),
        Ask::json("/embeddings/batch", r#"{"inputs": [{"text": "a"}, {"text": "b"}]}"#),
    ]
}

/// Sends `count` requests to each endpoint through each fault.
async fn run(count: u64) -> u64 {
    let server = Process::mock(&[], &SETTINGS);
    let traffic = Traffic::new();
    let asks = asks(&traffic);
    // What a first request opens stays open.
    let pool = Pool::new(server.address());
    for ask in &asks {
        pool.ask(ask, PATIENCE).await;
    }
    drop(pool);
    Scrape::of_deserted(server.address()).await;
    let before = server.usage();
    let mut total = 0;
    for toxic in Toxic::ALL {
        for ask in &asks {
            let tally = through(&server, toxic, ask, count).await;
            eprintln!("{:>10} {:<28} {tally}", toxic.name(), ask.target);
            total += tally.sent();
            if toxic.lets_through() {
                assert_eq!(tally.with(200), count, "{} {}: {tally}", toxic.name(), ask.target);
            }
            let failed = tally.statuses().find(|status| *status >= 500);
            assert_eq!(failed, None, "{} {}: {tally}", toxic.name(), ask.target);
        }
    }
    let scrape = Scrape::of_deserted(server.address()).await;
    for status in [500, 502, 503, 504] {
        assert_eq!(scrape.requests_with(status), 0, "status {status}");
    }
    let after = server.usage();
    eprintln!("{total} requests; before {before:?}, after {after:?}");
    // The last scrape's own connection may be closing yet.
    assert!(after.descriptors <= before.descriptors + 1, "before {before:?}, after {after:?}");
    server.stop().await;
    total
}

/// `count` requests through one fault.
async fn through(server: &Process, toxic: Toxic, ask: &Ask, count: u64) -> Tally {
    let proxy = FaultProxy::start(server.address(), toxic).await;
    let pool = Arc::new(Pool::new(proxy.address()));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (pool, ask) = (Arc::clone(&pool), ask.clone());
        clients.spawn(async move {
            let mut tally = Tally::default();
            for _ in (client..count).step_by(CLIENTS as usize) {
                let began = tokio::time::Instant::now();
                tally.count(pool.ask(&ask, PATIENCE).await, began.elapsed());
            }
            tally
        });
    }
    let mut all = Tally::default();
    while let Some(tally) = clients.join_next().await {
        all.add(&tally.expect("a client does not panic"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_way_fails_the_server_or_leaves_anything_behind() {
    assert_eq!(run(8).await, 7 * ENDPOINTS as u64 * 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    assert_eq!(run(200).await, 7000);
}
