//! A deterministic simulation of the whole service: connections, extractors, admission control, the decoding pool, the
//! engine, and the shutdown, under one seed. Most faults that attackers found lay between parts that are tested alone.
//!
//! Everything runs on one thread: the tasks of the server and of its clients on a tokio runtime with paused time, and
//! the worker and the decoding threads as coroutines (`platform::simulated`). Time passes only when everything waits. So
//! a seed determines what happens, to the millisecond and to the order of events, and a simulation of some seconds
//! takes some milliseconds.
//!
//! Simulated are the network (`network`), the backend (`backend`), and the time that decoding takes (`pictures`). All
//! other code is that of the server, except that what tokio's blocking threads do (parsing bodies above 16 KiB) is done
//! at once. Not covered: TLS, images by URL, keys and rate limits, and races within one poll of a task;
//! `engine/testing/schedules` explores those of the engine.
//!
//! Chosen after a comparison: `turmoil` simulates networks of hosts but no threads; `madsim` replaces tokio and needs
//! patched versions of what uses it; `shuttle` explores threads but neither hyper's timers nor tokio's tasks.
//!
//! - `scenario`: what happens, drawn from the seed. `clients`: those that keep the rules, and attackers.
//! - `service`: starts the server, ends it, and checks bounds and counts. `world`: checks what clients receive.
//!
//! In every simulation
//! - each request that was sent completely gets exactly one whole answer, unless its client leaves or breaks the rules,
//! - an honest client with one small request at a time is served within its share of time, whatever others do,
//! - rows, bytes, connections and the files in the decoding queue stay within their bounds,
//! - the server ends in time after the signal, and no request is cut,
//! - in the end all gauges are zero, all threads have ended, and the counts of requests and answers agree,
//! - the same seed gives the same log.
//!
//! The long version is run with `cargo test --release --lib -- --ignored --nocapture simulation::long`, from another
//! seed than 0 if `BLIP_SIMULATION_SEED` names one. A failure names its seed;
//! `BLIP_SIMULATION_SEED=<seed> cargo test --lib -- --ignored --nocapture simulation::replay` prints its log.

mod answer;
mod backend;
mod chance;
mod clients;
mod network;
mod pictures;
mod requests;
mod scenario;
mod service;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::scenario::Scenario;
use self::service::{Findings, play};
use crate::mutations::{self, Mutation};
use crate::platform::simulated;

/// Number of seeds in every test run and in the long version.
const SHORT: u64 = 400;
const LONG: u64 = 100_000;

/// How long `.ci/run` plays seeds.
const TIME_IN_CI: Duration = Duration::from_secs(120);

/// Number of seeds in which the long version looks for each fixed defect.
const SEARCHED: u64 = 700;

/// Every so many seeds, a seed is played a second time, to compare the logs.
const PLAYED_TWICE: u64 = 16;

/// Every so many seeds, a long run prints how far it is.
const TOLD: u64 = 5000;

/// Number of log lines that a failure prints.
const LINES: usize = 60;

/// Plays the scenario of a seed, with a defect brought back if one is named.
fn simulate(seed: u64, mutation: Option<Mutation>) -> Findings {
    mutations::with(mutation, || simulated::run(play(Scenario::of(seed))))
}

/// Plays these seeds on all cores, or as many of them as fit `limit`. Fails with the violations of all seeds that have
/// any, and the log of the first.
fn explore(seeds: Range<u64>, limit: Duration) {
    silence_scripted_panics();
    let (start, next) = (Instant::now(), AtomicU64::new(seeds.start));
    let all = seeds.end - seeds.start;
    let tallies = on_all_cores(|| {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || start.elapsed() >= limit {
                return tally;
            }
            let played = seed - seeds.start;
            if played > 0 && played.is_multiple_of(TOLD) {
                let seconds = start.elapsed().as_secs_f64();
                let left = seconds * (all - played) as f64 / played as f64;
                println!("{played} of {all} seeds in {seconds:.0} s, about {left:.0} s left");
            }
            let mut findings = simulate(seed, None);
            if seed % PLAYED_TWICE == 0 {
                findings.violations.extend(difference(&findings, &simulate(seed, None)));
            }
            if let Some(violation) = findings.violations.first() {
                println!("seed {seed} fails: {violation}");
            }
            tally.add(seed, findings);
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    println!("{} seeds in {seconds:.0} s: {tallies}", tallies.seeds);
    if let Some((seed, findings)) = tallies.failures.first_key_value() {
        report(*seed, findings, LINES);
        panic!("{} seeds fail: {:?}", tallies.failures.len(), tallies.failures.keys());
    }
}

/// Runs `play` on a thread for each core, and merges the results.
fn on_all_cores(play: impl Fn() -> Tally + Sync) -> Tally {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&play)).collect();
        let tallies =
            threads.into_iter().map(|thread| thread.join().expect("no simulation panics"));
        tallies.fold(Tally::default(), Tally::merge)
    })
}

/// Returns a description of the first difference between the logs of two simulations.
fn difference(first: &Findings, second: &Findings) -> Option<String> {
    let mut lines = first.log.iter().zip(&second.log);
    match lines.find(|(one, other)| one != other) {
        Some((one, other)) => Some(format!("the same seed gives another log: {one:?}, {other:?}")),
        None if first.log.len() == second.log.len() => None,
        None => Some("the same seed gives a longer log".to_owned()),
    }
}

/// What happened in many simulations.
#[derive(Default)]
struct Tally {
    seeds: u64,
    answers: u64,
    longest_wait: Duration,
    failures: BTreeMap<u64, Findings>,
}

impl Tally {
    fn add(&mut self, seed: u64, findings: Findings) {
        self.seeds += 1;
        self.answers += findings.answers;
        self.longest_wait = self.longest_wait.max(findings.longest_wait);
        if !findings.violations.is_empty() {
            self.failures.insert(seed, findings);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.seeds += other.seeds;
        self.answers += other.answers;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.failures.extend(other.failures);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, longest_wait, failures, .. } = self;
        write!(f, "{answers} answers, longest wait of the probe {longest_wait:?}")?;
        for (seed, findings) in failures.iter().take(20) {
            write!(f, "\nseed {seed}: {}", findings.violations[0])?;
        }
        Ok(())
    }
}

/// Prints a scenario, the end of its log, and its violations.
fn report(seed: u64, findings: &Findings, lines: usize) {
    let Scenario { attacks, honest, faults, horizon, shutdown, .. } = Scenario::of(seed);
    println!("seed {seed}: {attacks:?}, {honest} honest clients, {faults:?}");
    println!("clients send for {horizon:?}; end after {shutdown:?}");
    let first = findings.log.len().saturating_sub(lines);
    println!("{}", findings.log[first..].join("\n"));
    println!("violations:\n{}", findings.violations.join("\n"));
}

/// Keeps the scripted panics of the backend out of the output of tests.
fn silence_scripted_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.payload().downcast_ref::<&str>().copied().unwrap_or_default();
            if !(simulated::is_active() && text.contains("scripted")) {
                usual(panic);
            }
        }));
    });
}

#[test]
fn every_seed_keeps_the_promises_of_the_service() {
    explore(0..SHORT, Duration::MAX);
}

#[test]
#[ignore = "long"]
fn many_seeds() {
    explore(0..LONG, TIME_IN_CI);
}

#[test]
#[ignore = "long"]
fn long() {
    explore(seed_argument().unwrap_or(0)..LONG, Duration::MAX);
}

#[test]
#[ignore = "replays the seed of a failure"]
fn replay() {
    let seed = seed_argument().expect("set BLIP_SIMULATION_SEED");
    silence_scripted_panics();
    let findings = simulate(seed, None);
    report(seed, &findings, usize::MAX);
    assert!(findings.violations.is_empty());
}

/// Returns the seed that `BLIP_SIMULATION_SEED` names, if it is set.
fn seed_argument() -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "an argument of a test, not a setting")]
    let seed = std::env::var("BLIP_SIMULATION_SEED").ok()?;
    Some(seed.parse().expect("BLIP_SIMULATION_SEED is a number"))
}

/// The fixed defects. In each line: a defect, and the first seed that finds it. If a change of the scenarios moves the
/// seeds, `long_search_for_fixed_defects` finds new ones, for one defect if `BLIP_SIMULATION_MUTATION` names it.
const MUTATIONS: [(Mutation, u64); 11] = [
    (Mutation::DeclaredBodiesReserveCapacity, 40),
    (Mutation::DecodesInOrderOfArrival, 70),
    (Mutation::AbandonedDecodesStay, 0),
    (Mutation::DrainIgnoresEarlyCalls, 9),
    (Mutation::ConnectionsWithoutShares, 1),
    (Mutation::TurnsByCallOnly, 191),
    (Mutation::UnreadAnswersKeepPlaces, 87),
    (Mutation::ClosingConnectionsKeepSockets, 175),
    (Mutation::StreamsIgnoreTheEnd, 28),
    (Mutation::JoinedDecodesKeepTheirTurn, 341),
    (Mutation::EndedBulkRequestsReadNothing, 450),
];

#[test]
fn every_fixed_defect_is_found_again_when_it_is_brought_back() {
    silence_scripted_panics();
    let is_missed = |(mutation, seed)| simulate(seed, Some(mutation)).violations.is_empty();
    let missed: Vec<_> = MUTATIONS.into_iter().filter(|known| is_missed(*known)).collect();
    assert!(missed.is_empty(), "not found by their seeds: {missed:?}");
}

#[test]
#[ignore = "long"]
fn long_search_for_fixed_defects() {
    silence_scripted_panics();
    #[expect(clippy::disallowed_methods, reason = "an argument of this test, not a setting")]
    let only = std::env::var("BLIP_SIMULATION_MUTATION").unwrap_or_default();
    for (mutation, _) in MUTATIONS {
        if !format!("{mutation:?}").contains(&only) {
            continue;
        }
        let next = AtomicU64::new(0);
        let tally = on_all_cores(|| {
            let mut tally = Tally::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= SEARCHED {
                    return tally;
                }
                tally.add(seed, simulate(seed, Some(mutation)));
            }
        });
        let first = tally.failures.first_key_value();
        let first = first.map(|(seed, findings)| (seed, &findings.violations[0]));
        println!("{mutation:?}: {} of {SEARCHED} seeds, first {first:?}", tally.failures.len());
    }
}
