//! SIGTERM and SIGKILL at random instants under load: requests whose bodies arrive, whose pictures wait for a decoder, whose
//! work waits for the models or runs. Whatever the server began is answered, as its own log tells: every
//! request that it saw has a line there, under the id that its client gave it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::chance::Chance;
use super::client::problem_code;
use super::process::{Keep, Process};
use super::raw::{connect, read_answer};
use super::scrape::Scrape;
use super::traffic::{Ask, Traffic, numbered, photograph};

/// Clients of each kind.
const CLIENTS: [(Kind, u64); 3] = [(Kind::Mixed, 16), (Kind::SlowBody, 4), (Kind::LargePicture, 6)];
/// Long enough for several units at any time.
const FLAGS: [&str; 2] = ["--image-us", "20000"];
/// Every request is logged, refusals too.
const ALL_LINES: (&str, &str) = ("LOG__MAX_REFUSALS_PER_SECOND", "1000000");
/// Too short for what waits at any time: it is answered 503.
const SHORT_DRAIN: (&str, &str) = ("SERVER__DRAIN_TIMEOUT_MS", "50");
/// What a decoder needs a while for.
const LARGE: (u32, u32) = (2000, 1500);
/// Between the two halves of a slow body.
const BODY_PAUSE: Duration = Duration::from_millis(150);
/// The server's drain time and the second behind it, and time to end.
const END_LIMIT: Duration = Duration::from_secs(25);
/// Signals come within this from the first request.
const INSTANTS: Duration = Duration::from_millis(400);
/// Exit code after a second signal.
const INTERRUPTED: i32 = 130;

/// What clients got: the status of each whole answer by the request's id.
type Answers = BTreeMap<String, u16>;

/// What a client's requests wait for most of their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// The models; some requests are wrong.
    Mixed,
    /// The rest of the body.
    SlowBody,
    /// A decoder.
    LargePicture,
}

/// One server's life.
#[derive(Debug, Default)]
struct Life {
    sent: u64,
    answered: u64,
    /// Answers that say that the server ends, by kind of client.
    cut_short: BTreeMap<Kind, u64>,
    /// Requests without an answer that the server never saw either.
    never_seen: u64,
    drain: Duration,
}

/// A client that sends again and again until the server does not answer any more.
struct Client {
    address: SocketAddr,
    number: u64,
    kind: Kind,
    traffic: Traffic,
    large: Bytes,
    sent: Arc<AtomicU64>,
}

impl Client {
    /// What it got, and how many of these answers said that the server ends.
    async fn run(self) -> (Answers, u64) {
        let (mut answers, mut cut_short) = (Answers::new(), 0);
        let mut connection: Option<TcpStream> = None;
        for index in 0.. {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => match TcpStream::connect(self.address).await {
                    Ok(stream) => stream,
                    Err(_) => break,
                },
            };
            let id = format!("client-{}-{index}", self.number);
            let request = self.ask(self.number * 1_000_000 + index).to_bytes(&id);
            self.sent.fetch_add(1, Ordering::Relaxed);
            let (first, rest) = request.split_at(match self.kind {
                Kind::SlowBody => request.len() - 100,
                Kind::Mixed | Kind::LargePicture => request.len(),
            });
            // An answer may be there although the request could not be written to its end.
            let _ = stream.write_all(first).await;
            if !rest.is_empty() {
                tokio::time::sleep(BODY_PAUSE).await;
                let _ = stream.write_all(rest).await;
            }
            let Some((status, body)) = read_answer(&mut stream).await else { continue };
            cut_short += u64::from(problem_code(status, &body).as_deref() == Some("shutting_down"));
            answers.insert(id, status);
            connection = Some(stream);
        }
        (answers, cut_short)
    }

    fn ask(&self, index: u64) -> Ask {
        match self.kind {
            Kind::Mixed => self.traffic.mixed(index),
            Kind::SlowBody => Ask::picture("/embeddings", self.traffic.unseen(index)),
            Kind::LargePicture => Ask::picture("/embeddings", numbered(&self.large, index)),
        }
    }
}

/// Clients of these kinds, each in a task; `sent` counts their requests.
fn clients(
    address: SocketAddr,
    kinds: &[(Kind, u64)],
    large: &Bytes,
    sent: &Arc<AtomicU64>,
) -> JoinSet<(Kind, Answers, u64)> {
    let mut clients = JoinSet::new();
    let kinds = kinds.iter().flat_map(|&(kind, count)| (0..count).map(move |_| kind));
    for (number, kind) in (0..).zip(kinds) {
        let (traffic, large, sent) = (Traffic::new(), large.clone(), Arc::clone(sent));
        let client = Client { address, number, kind, traffic, large, sent };
        clients.spawn(async move {
            let (answers, cut_short) = client.run().await;
            (kind, answers, cut_short)
        });
    }
    clients
}

/// The status of every request that a log tells of, by its id.
fn logged(lines: &[String]) -> Answers {
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let requests = lines.filter_map(|line| {
        let status = line.get("status")?.as_u64()?;
        Some((line.get("request_id")?.as_str()?.to_owned(), u16::try_from(status).ok()?))
    });
    requests.collect()
}

/// Starts a server, lets clients at it, ends it at a random instant, and compares what they got with what it logged.
async fn one_life(chance: &mut Chance, settings: &[(&str, &str)], large: &Bytes) -> Life {
    let server = Process::start("mock", &FLAGS, settings, Keep::All);
    let sent = Arc::new(AtomicU64::new(0));
    let mut clients = clients(server.address(), &CLIENTS, large, &sent);
    tokio::time::sleep(chance.time(INSTANTS)).await;
    let began = Instant::now();
    server.signal(Signal::TERM);
    let (status, log) = server.finish(END_LIMIT).await;
    let drain = began.elapsed();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    let (mut answers, mut cut_short) = (Answers::new(), BTreeMap::new());
    while let Some(got) = clients.join_next().await {
        let (kind, got, cut) = got.unwrap();
        answers.extend(got);
        *cut_short.entry(kind).or_default() += cut;
    }
    let logged = logged(&log);
    assert_eq!(answers, logged, "left: what clients got, right: what the server says it answered");
    let sent = sent.load(Ordering::Relaxed);
    let answered = answers.len() as u64;
    assert!(answers.values().all(|status| matches!(status, 200 | 400..500 | 503)), "{answers:?}");
    Life { sent, answered, cut_short, never_seen: sent - answered, drain }
}

/// Ends servers in turn with time for all that waits, and with too little.
async fn terminate(cycles: u64) -> Life {
    let mut chance = Chance::new(14);
    let mut all = Life::default();
    let large = photograph(LARGE);
    for cycle in 0..cycles {
        let settings = if cycle % 2 == 0 { &[ALL_LINES][..] } else { &[ALL_LINES, SHORT_DRAIN] };
        let life = one_life(&mut chance, settings, &large).await;
        for (kind, count) in &life.cut_short {
            *all.cut_short.entry(*kind).or_default() += count;
        }
        all.sent += life.sent;
        all.answered += life.answered;
        all.never_seen += life.never_seen;
        all.drain = all.drain.max(life.drain);
        if cycle % 20 == 19 {
            eprintln!("  {} cycles: {all:?}", cycle + 1);
        }
    }
    eprintln!("SIGTERM x {cycles}: {all:?} (drain: the longest), 0 lost");
    all
}

/// Kills servers under load and starts the next; the times until it was ready.
async fn kill(cycles: u64) -> Vec<Duration> {
    let mut chance = Chance::new(15);
    let mut times = Vec::new();
    for _ in 0..cycles {
        let server = Process::mock(&FLAGS, &[]);
        times.push(server.start_time());
        let sent = Arc::new(AtomicU64::new(0));
        let mut clients = clients(server.address(), &CLIENTS[..1], &Bytes::new(), &sent);
        tokio::time::sleep(chance.time(INSTANTS)).await;
        server.signal(Signal::KILL);
        let (status, _) = server.finish(END_LIMIT).await;
        assert_eq!(status.code(), None);
        // Clients see the end and do not hang.
        while let Some(got) = clients.join_next().await {
            got.unwrap();
        }
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gets_a_stop_signal_answers_every_request_that_it_has_begun() {
    assert!(terminate(4).await.answered > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_starts_again() {
    assert_eq!(kill(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    // One image takes longer than this test waits.
    let mut server = Process::mock(&["--image-us", "3000000"], &[]);
    let mut busy = connect(server.address()).await;
    let picture = Ask::picture("/caption", Traffic::new().unseen(1));
    busy.write_all(&picture.to_bytes("busy")).await.unwrap();
    Scrape::when(server.address(), "the picture is worked on", |scrape| {
        scrape.sum("blip_queue_rows", &[]) == 1
    })
    .await;
    let began = Instant::now();
    server.signal(Signal::TERM);
    // The first signal has been taken once nobody can connect any more.
    while TcpStream::connect(server.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.signal(Signal::TERM);
    let status = server.wait(END_LIMIT).await;
    assert_eq!(status.code(), Some(INTERRUPTED));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    let life = terminate(200).await;
    // Calls were waiting in every stage.
    for (kind, _) in CLIENTS {
        assert!(life.cut_short.get(&kind).is_some_and(|&count| count > 0), "{kind:?}: {life:?}");
    }
    let times = kill(50).await;
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("SIGKILL x 50: ready again after {median:.0?} in the median, {most:.0?} at most");
}
