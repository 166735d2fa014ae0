//! Faults injected into the whole service, over real sockets: panics, errors, delays and exhausted memory at every place
//! that `blip_server::faults` names. Whatever fails, each request gets exactly one reply with a status that fits, and once
//! the fault is gone the service is as good as new.
//!
//! ```text
//! cargo test --test faults
//! cargo test --release --test faults -- --ignored --nocapture
//! ```
//!
//! A process of its own, because places are switched on for a whole process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests: by panicking")]

mod fault;
mod requests;
mod scenarios;
#[path = "../../it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "shared with the binary `it`, which uses all of it")]
mod support;

use std::time::{Duration, Instant};

use blip_server::faults::PLACES;

use self::fault::Fault;
use self::requests::{REQUESTS, Reply, send};
use self::scenarios::{SCENARIOS, Scenario};
use self::support::TestServer;

/// Once the fault is gone, this long at most.
const RECOVERY: Duration = Duration::from_secs(1);
/// Requests that are on their way at one time.
const AT_ONCE: usize = 8;

/// What came of a scenario.
struct Outcome {
    injected: u64,
    /// Requests answered with 200.
    answered: usize,
    recovery: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_leaves_one_reply_for_each_request_and_a_service_as_good_as_new() {
    run(24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "long"]
async fn long() {
    run(400).await;
}

/// Every scenario with so many requests.
async fn run(requests: usize) {
    fault::silence_injected_panics();
    let (mut injected, mut sent, mut slowest) = (0, 0, Duration::ZERO);
    for scenario in SCENARIOS {
        let outcome = scenario_run(scenario, requests).await;
        eprintln!(
            "{:<70} {:>4} faults {:>4} of {requests} answered, good again after {:?}",
            scenario.name(),
            outcome.injected,
            outcome.answered,
            outcome.recovery
        );
        injected += outcome.injected;
        sent += requests;
        slowest = slowest.max(outcome.recovery);
    }
    eprintln!(
        "{} scenarios, {sent} requests, {injected} faults injected, slowest recovery {slowest:?}",
        SCENARIOS.len()
    );
    assert!(injected >= SCENARIOS.len() as u64, "faults were injected: {injected}");
}

async fn scenario_run(scenario: &Scenario, requests: usize) -> Outcome {
    let server = TestServer::start(|config| {
        config.rebuild = true;
        config.engine.worker_rebuild_interval = Duration::ZERO;
        config.engine.worker_hang_limit = Duration::from_secs(20);
    })
    .await;
    assert_eq!(send(server.address, 0).await, Reply::One(200), "good before the fault");
    let faults: Vec<Fault> = scenario.faults.iter().map(Fault::start).collect();
    let mut replies = Vec::new();
    for first in (0..requests).step_by(AT_ONCE) {
        let many = (first..(first + AT_ONCE).min(requests)).map(|kind| send(server.address, kind));
        replies.extend(futures_util::future::join_all(many).await);
    }
    let injected = faults.into_iter().map(Fault::stop).sum();
    for (request, reply) in replies.iter().enumerate() {
        let expected = match reply {
            Reply::One(200) => true,
            Reply::One(status) => scenario.statuses.contains(status),
            Reply::Closed => scenario.may_close,
            Reply::Many(_) => false,
        };
        let name = REQUESTS[request % REQUESTS.len()];
        assert!(expected, "{}: {reply:?} to request {request} ({name})", scenario.name());
    }
    let gone = Instant::now();
    while send(server.address, requests::HEALTH).await != Reply::One(200) {
        assert!(gone.elapsed() < RECOVERY, "{}: not ready again", scenario.name());
    }
    let recovery = gone.elapsed();
    for (kind, name) in REQUESTS.iter().enumerate() {
        let reply = send(server.address, kind).await;
        assert_eq!(reply, Reply::One(200), "{} is over: {name}", scenario.name());
    }
    // Dropping the service asserts that nothing is held.
    server.stop().await;
    let answered = replies.iter().filter(|reply| **reply == Reply::One(200)).count();
    Outcome { injected, answered, recovery }
}

#[test]
fn every_place_has_a_scenario() {
    for place in PLACES {
        let named = |scenario: &Scenario| scenario.faults.iter().any(|fault| fault.place == place);
        assert!(SCENARIOS.iter().any(named), "{place}");
    }
}
