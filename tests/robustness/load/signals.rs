//! SIGTERM and SIGKILL at random instants under load. Whatever the server began is answered, as its own log tells: every
//! request that it saw has a line there, under the id that its client gave it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::chance::Chance;
use super::process::{Keep, Process};
use super::raw::{connect, read_answer};
use super::scrape::Scrape;
use super::traffic::{Ask, Traffic};

const CLIENTS: u64 = 16;
/// Long enough for several units at any time.
const FLAGS: [&str; 2] = ["--image-us", "20000"];
/// Every request is logged, refusals too.
const SETTINGS: [(&str, &str); 1] = [("LOG__MAX_REFUSALS_PER_SECOND", "1000000")];
/// The server's drain time and the second behind it, and time to end.
const END_LIMIT: Duration = Duration::from_secs(25);
/// Signals come within this from the first request.
const INSTANTS: Duration = Duration::from_millis(400);
/// Exit code after a second signal.
const INTERRUPTED: i32 = 130;

/// What clients got: the status of each whole answer by the request's id.
type Answers = BTreeMap<String, u16>;

/// One server's life.
#[derive(Debug, Default)]
struct Life {
    sent: u64,
    answered: u64,
    /// Requests without an answer that the server never saw either.
    never_seen: u64,
    drain: Duration,
}

/// A client that sends again and again until the server does not answer any more: what it got, and what it sent.
async fn client(address: SocketAddr, number: u64, sent: Arc<AtomicU64>) -> Answers {
    let traffic = Traffic::new();
    let mut answers = Answers::new();
    let mut connection: Option<TcpStream> = None;
    for index in 0.. {
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => match TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(_) => break,
            },
        };
        let id = format!("client-{number}-{index}");
        let request = traffic.mixed(number * 1_000_000 + index).to_bytes(&id);
        sent.fetch_add(1, Ordering::Relaxed);
        // An answer may be there although the request could not be written to its end.
        let _ = stream.write_all(&request).await;
        let Some((status, _)) = read_answer(&mut stream).await else { continue };
        answers.insert(id, status);
        connection = Some(stream);
    }
    answers
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
async fn one_life(chance: &mut Chance) -> Life {
    let server = Process::start("mock", &FLAGS, &SETTINGS, Keep::All);
    let sent = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(server.address(), number, Arc::clone(&sent)));
    }
    tokio::time::sleep(chance.time(INSTANTS)).await;
    let began = Instant::now();
    server.signal(Signal::TERM);
    let (status, log) = server.finish(END_LIMIT).await;
    let drain = began.elapsed();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    let mut answers = Answers::new();
    while let Some(got) = clients.join_next().await {
        answers.extend(got.unwrap());
    }
    let logged = logged(&log);
    assert_eq!(answers, logged, "left: what clients got, right: what the server says it answered");
    let sent = sent.load(Ordering::Relaxed);
    let answered = answers.len() as u64;
    assert!(answers.values().all(|status| matches!(status, 200 | 400..500 | 503)), "{answers:?}");
    Life { sent, answered, never_seen: sent - answered, drain }
}

async fn terminate(cycles: u64) -> u64 {
    let mut chance = Chance::new(14);
    let mut all = Life::default();
    for cycle in 0..cycles {
        let life = one_life(&mut chance).await;
        all.sent += life.sent;
        all.answered += life.answered;
        all.never_seen += life.never_seen;
        all.drain = all.drain.max(life.drain);
        if cycle % 20 == 19 {
            eprintln!("  {} cycles: {all:?}", cycle + 1);
        }
    }
    eprintln!("SIGTERM x {cycles}: {all:?} (drain: the longest), 0 lost");
    all.answered
}

/// Kills servers under load and starts the next; the times until it was ready.
async fn kill(cycles: u64) -> Vec<Duration> {
    let mut chance = Chance::new(15);
    let mut times = Vec::new();
    for _ in 0..cycles {
        let server = Process::mock(&FLAGS, &[]);
        times.push(server.start_time());
        let sent = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(client(server.address(), number, Arc::clone(&sent)));
        }
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
async fn a_server_that_is_told_to_stop_answers_all_that_it_began() {
    assert!(terminate(3).await > 0);
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
    terminate(200).await;
    let times = kill(50).await;
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("SIGKILL x 50: ready again after {median:.0?} in the median, {most:.0?} at most");
}
