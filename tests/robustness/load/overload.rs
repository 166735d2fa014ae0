//! More requests than can be served, up to ten times: what is answered, what is refused, that every request is counted
//! once on both sides, and that as much is served as without the overload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::Pool;
use super::disconnects::leave;
use super::open_loop::Target;
use super::process::Process;
use super::scrape::Scrape;
use super::tally::{Outcome, Tally};
use super::toxics::{FaultProxy, Toxic};
use super::traffic::{Traffic, WRONG_STATUSES};

/// A capacity of a few hundred requests a second: the time of the models, not that of HTTP or of the clients, is what
/// there is too little of.
const FLAGS: [&str; 6] = ["--image-us", "8000", "--unit-us", "1000", "--token-us", "100"];
/// More connections than requests can be under way: what there is too little of is the time of the models. On a busy
/// machine, the clients are so slow to send on their new connections that the server would replace those as idle.
const SETTINGS: [(&str, &str); 3] = [
    ("LOG__SAMPLE_EVERY", "0"),
    ("SERVER__TRUSTED_PROXIES", "127.0.0.1"),
    ("SERVER__MAX_CONNECTIONS", "8192"),
];
/// Clients that share the server, by the addresses that the proxy in front of them tells.
const CLIENTS: u64 = 16;
/// Clients that find out the capacity: enough that the server is never idle.
const SATURATING: usize = 64;
/// The default of `engine.max_queue_wait_ms`.
const MAX_QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Statuses of overload.
const REFUSALS: [u16; 3] = [429, 503, 504];

/// How long each part of a run takes.
struct Plan {
    /// To measure the capacity, and the latency without load.
    measure: Duration,
    /// Load, as a multiple of the capacity, and how long it lasts.
    steps: [(f64, Duration); 4],
    /// Clients that leave or are slow, beside those that count.
    faulty_clients: usize,
}

/// A step's outcome.
struct Row {
    factor: f64,
    tally: Tally,
    /// Answers with status 200 a second, from the first arrival to the last answer.
    goodput: f64,
}

/// What a run found.
struct Report {
    rows: Vec<Row>,
    idle: Tally,
    capacity: f64,
}

impl Report {
    fn goodput(&self, factor: f64) -> f64 {
        let row = self.rows.iter().find(|row| row.factor >= factor).expect("a row of each factor");
        row.goodput
    }
}

async fn run(plan: Plan) -> Report {
    let server = Process::mock(&FLAGS, &SETTINGS);
    let address = server.address();
    let traffic = Traffic::new();
    let pool = Arc::new(Pool::of_clients(address, CLIENTS));
    let target = Target::new(pool, move |index| traffic.mixed(index));
    let (idle, _) = target.closed_loop(1, plan.measure).await;
    let (saturated, _) = target.closed_loop(SATURATING, plan.measure).await;
    let capacity = saturated.sent() as f64 / plan.measure.as_secs_f64();
    eprintln!("idle: {idle}\ncapacity {capacity:.0}/s: {saturated}");
    let mut all = idle.clone();
    all.add(&saturated);

    let faults = Faults::start(address, plan.faulty_clients);
    let mut rows = Vec::new();
    for (factor, length) in plan.steps {
        let began = Instant::now();
        let tally = target.open_loop(capacity * factor, length).await;
        let goodput = tally.with(200) as f64 / began.elapsed().as_secs_f64();
        eprintln!("{factor:>4} x: goodput {goodput:.0}/s, {tally}");
        all.add(&tally);
        rows.push(Row { factor, tally, goodput });
    }
    let faults = faults.end().await;
    let peak = server.peak_rss() >> 20;
    eprintln!("in all: {all}\nfaults: {faults:?}; peak of the server's memory {peak} MiB");
    compare(&all, &faults, &Scrape::of_idle(address).await);
    drop(target);
    Scrape::of_deserted(address).await;
    server.stop().await;
    Report { rows, idle, capacity }
}

/// Everything that was sent was answered, with a status that may be, and the server counted the same.
fn compare(all: &Tally, faults: &FaultCounts, scrape: &Scrape) {
    assert_eq!(all.sent(), all.answered(), "not everything was answered: {all}");
    let expected = |status: &u16| {
        *status == 200 || REFUSALS.contains(status) || WRONG_STATUSES.contains(status)
    };
    let other = all.statuses().find(|status| !expected(status));
    assert_eq!(other, None, "{all}");
    let sent = all.sent() + faults.answered;
    let counted = scrape.requests();
    assert!(counted >= sent, "{counted} counted, {sent} sent");
    assert!(counted <= sent + faults.left, "{counted} counted, {sent} and {} sent", faults.left);
    if faults.left + faults.answered == 0 {
        for status in all.statuses() {
            assert_eq!(scrape.requests_with(status), all.with(status), "status {status}");
        }
        // A batch of two texts counts two items.
        let batches = [("route", "/embeddings/batch"), ("status", "200")];
        let items = all.with(200) + scrape.sum("blip_http_requests_total", &batches);
        assert_eq!(scrape.sum("blip_items_total", &[("code", "ok")]), items);
    }
    assert_eq!(scrape.requests_with(500), 0);
}

/// Clients that leave, and clients behind a bad network, beside those that count.
struct Faults {
    over: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 2]>,
    clients: JoinSet<()>,
}

/// What they sent.
#[derive(Debug)]
struct FaultCounts {
    /// Requests that were left at some point: the server may have seen them.
    left: u64,
    /// Requests that were answered through the bad network.
    answered: u64,
}

impl Faults {
    fn start(address: SocketAddr, clients: usize) -> Self {
        let (over, counts) =
            (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 2]));
        let mut running = JoinSet::new();
        for client in 0..clients {
            let (over, counts) = (Arc::clone(&over), Arc::clone(&counts));
            running.spawn(async move {
                let traffic = Traffic::new();
                let proxy =
                    FaultProxy::start(address, Toxic::Slicer(40, Duration::from_millis(1))).await;
                let pool = Pool::new(proxy.address());
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let index = round * clients as u64 + client as u64;
                    if client % 2 == 0 {
                        leave(address, &traffic, index).await;
                        counts[0].fetch_add(1, Ordering::Relaxed);
                    } else {
                        let outcome = pool.ask(&traffic.mixed(index), MAX_QUEUE_WAIT * 20).await;
                        assert!(matches!(outcome, Outcome::Answer(..)), "{outcome:?}");
                        counts[1].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        Self { over, counts, clients: running }
    }

    async fn end(mut self) -> FaultCounts {
        self.over.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        let [left, answered] =
            [&self.counts[0], &self.counts[1]].map(|count| count.load(Ordering::Relaxed));
        FaultCounts { left, answered }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_an_overload_is_answered_or_refused_and_counted_once() {
    let second = Duration::from_secs(1);
    let steps = [(0.5, second), (1.0, second), (2.0, second), (5.0, second * 2)];
    let report = run(Plan { measure: second, steps, faulty_clients: 0 }).await;
    // The last step was an overload indeed.
    assert!(report.rows[3].tally.with(503) > 0 && report.rows[3].tally.with(200) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let steps = [(0.5, minutes(2)), (1.0, minutes(3)), (2.0, minutes(3)), (10.0, minutes(13))];
    let report = run(Plan { measure: Duration::from_secs(20), steps, faulty_clients: 8 }).await;
    let sent: u64 = report.rows.iter().map(|row| row.tally.sent()).sum();
    eprintln!("{sent} requests at a capacity of {:.0}/s", report.capacity);
    let (once, tenfold) = (report.goodput(1.0), report.goodput(10.0));
    assert!(tenfold >= 0.9 * once, "goodput {tenfold:.0}/s at 10x, {once:.0}/s at 1x");
}

/// As [`long`], for minutes: how long those wait who are let in. Tells something only where nothing else wants the cores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long_waits() {
    let minute = Duration::from_secs(60);
    let steps = [(0.5, minute / 2), (1.0, minute), (2.0, minute), (10.0, minute * 2)];
    let report = run(Plan { measure: minute / 3, steps, faulty_clients: 0 }).await;
    let most = MAX_QUEUE_WAIT + report.idle.quantile(990) * 2;
    for row in &report.rows {
        let p99 = row.tally.quantile(990);
        assert!(p99 <= most, "{} x: p99 {p99:?}, at most {most:?} is wanted", row.factor);
    }
}
