//! Clients that hold connections by being slow: with their heads, with their bodies, with reading. Each is shown the
//! door in its time, while good clients are served as ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::client::Pool;
use super::open_loop::Target;
use super::process::Process;
use super::raw::{connect, trickle};
use super::scrape::Scrape;
use super::tally::Tally;
use super::traffic::Traffic;

const PAUSE: Duration = Duration::from_millis(50);
/// A server that does not cut off at all.
const NEVER: Duration = Duration::from_secs(30);

/// The limit of heads, of pauses in bodies and of writing; a body may take twice as long in all. The short form's is
/// short; in the long form cut-off clients that come again at once must not be a flood of connections instead.
const SHORT_LIMIT: Duration = Duration::from_millis(500);
const LONG_LIMIT: Duration = Duration::from_secs(5);

/// How a client is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slow {
    /// One byte of a head at a time.
    Head,
    /// One byte of a body at a time.
    Body,
    /// A body that stops.
    StalledBody,
    /// Asks and never reads.
    Reading,
}

impl Slow {
    const ALL: [Self; 4] = [Self::Head, Self::Body, Self::StalledBody, Self::Reading];

    /// The limit that it meets; a client that does not read meets it once what lies between is full.
    fn limit(self, limit: Duration) -> Duration {
        match self {
            Self::Head | Self::StalledBody | Self::Reading => limit,
            Self::Body => limit * 2,
        }
    }

    /// How long the server puts up with one such client.
    async fn attack(self, address: SocketAddr) -> Duration {
        let mut stream = connect(address).await;
        let began = Instant::now();
        let body = vec![b'x'; 10_000];
        let head = b"POST /caption HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n";
        let held = async {
            match self {
                Self::Head => {
                    let start = b"POST /caption HTTP/1.1\r\nhost: x\r\nx-slow: ";
                    trickle(&mut stream, &[start, &body[..]].concat(), PAUSE).await;
                }
                Self::Body | Self::StalledBody => {
                    // The server may be gone already.
                    let _ = stream.write_all(head).await;
                    let sent = if self == Self::Body { &body[..] } else { &body[..10] };
                    trickle(&mut stream, sent, PAUSE).await;
                }
                Self::Reading => refuse_to_read(&stream).await,
            }
        };
        // The time tells whether it ended.
        let _ = timeout(NEVER, held).await;
        began.elapsed()
    }
}

/// Asks for large answers and reads none, until the server ends the connection.
async fn refuse_to_read(stream: &TcpStream) {
    let asks = b"GET /openapi-strict.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    loop {
        match stream.try_write(&asks) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        sleep(PAUSE / 5).await;
    }
}

/// Lets `connections` clients of each kind come again and again for `length`; the longest time that each kind held one.
async fn attack(
    address: SocketAddr,
    connections: usize,
    length: Duration,
) -> Vec<(Slow, usize, Duration)> {
    let end = Instant::now() + length;
    let mut kinds = JoinSet::new();
    for slow in Slow::ALL {
        kinds.spawn(async move {
            let mut clients = JoinSet::new();
            // What those who do not read make the kernel hold is megabytes each.
            let connections =
                if slow == Slow::Reading { connections.div_ceil(10) } else { connections };
            for _ in 0..connections {
                clients.spawn(async move {
                    let (mut times, mut longest) = (0, Duration::ZERO);
                    while times == 0 || Instant::now() < end {
                        longest = longest.max(slow.attack(address).await);
                        times += 1;
                    }
                    (times, longest)
                });
            }
            let all = clients.join_all().await;
            let longest = all.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
            (slow, all.iter().map(|(times, _)| times).sum(), longest)
        });
    }
    kinds.join_all().await
}

/// A few good clients before and during the attack, and how long attackers were let hold on.
async fn run(
    connections: usize,
    length: Duration,
    limit: Duration,
) -> (Tally, Tally, Vec<(Slow, usize, Duration)>) {
    let (once, twice) = (limit.as_millis().to_string(), (limit * 2).as_millis().to_string());
    let settings = [
        ("SERVER__HEADER_READ_TIMEOUT_MS", &*once),
        ("SERVER__BODY_IDLE_TIMEOUT_MS", &*once),
        ("SERVER__BODY_TOTAL_TIMEOUT_MS", &*twice),
        ("SERVER__WRITE_TIMEOUT_MS", &*once),
        ("LOG__MAX_REFUSALS_PER_SECOND", "1"),
    ];
    let server = Process::mock(&[], &settings);
    let address = server.address();
    let traffic = Traffic::new();
    let target = Target::new(Arc::new(Pool::new(address)), move |index| traffic.right(index));
    let baseline = target.open_loop(40.0, length).await;
    let attacking = tokio::spawn(attack(address, connections, length));
    let during = target.open_loop(40.0, length).await;
    let attacks = attacking.await.unwrap();
    eprintln!("good clients before: {baseline}\ngood clients during: {during}");
    for (slow, times, longest) in &attacks {
        eprintln!("{slow:?}: {times} connections, held for {longest:.2?} at most");
    }
    for tally in [&baseline, &during] {
        assert_eq!(tally.with(200), tally.sent(), "a good client was not served: {tally}");
    }
    drop(target);
    Scrape::of_deserted(address).await;
    server.stop().await;
    (baseline, during, attacks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_cut_off_and_good_ones_served() {
    let (_, _, attacks) = run(20, Duration::from_secs(2), SHORT_LIMIT).await;
    for (slow, _, longest) in attacks {
        // Ten times the limit: slow machines run this too.
        assert!(longest < slow.limit(SHORT_LIMIT) * 10, "{slow:?} held on for {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    let (before, during, attacks) = run(250, Duration::from_secs(60), LONG_LIMIT).await;
    for (slow, _, longest) in attacks {
        let most = slow.limit(LONG_LIMIT) + Duration::from_secs(1);
        assert!(longest <= most, "{slow:?} held on for {longest:?}, at most {most:?} is wanted");
    }
    let (before, during) = (before.quantile(990), during.quantile(990));
    assert!(during < before * 2, "p99 {before:?} before, {during:?} during the attack");
}
