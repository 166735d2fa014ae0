//! Hours of ordinary traffic with a few faults: memory, descriptors and threads stay where they are. The same judgement
//! on a server that leaks on purpose has to find the leak.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval};

use super::client::Pool;
use super::disconnects::leave;
use super::open_loop::Target;
use super::process::{Process, Usage};
use super::scrape::Scrape;
use super::slope::{Reading, Slope};
use super::tally::Tally;
use super::traffic::Traffic;

/// Requests a second.
const RATE: f64 = 20.0;
/// One client in a hundred leaves.
const FAULTS: f64 = RATE / 100.0;
/// Caches are full, and memory level, within a minute. The mock's features count a hundred bytes each, and what the cache
/// needs beside them is more than that: only a small one fills at this rate.
const SETTINGS: [(&str, &str); 3] = [
    ("ENGINE__FEATURE_CACHE_BYTES", "20000"),
    ("IMAGES__PIXEL_CACHE_BYTES", "4194304"),
    ("LOG__SAMPLE_EVERY", "0"),
];

/// How long, how often read.
#[derive(Debug, Clone, Copy)]
struct Plan {
    length: Duration,
    sample: Duration,
}

/// What was read.
struct Soaked {
    tally: Tally,
    samples: Vec<(Duration, Usage)>,
    /// Before the traffic, and after it, with nobody connected.
    rest: (Usage, Usage),
}

impl Soaked {
    fn rss(&self) -> Vec<Reading> {
        let readings =
            self.samples.iter().map(|(time, usage)| (time.as_secs_f64(), usage.rss as f64));
        readings.collect()
    }

    /// Most of something in the first and in the second half.
    fn most(&self, of: impl Fn(&Usage) -> usize) -> (usize, usize) {
        let (first, second) = self.samples.split_at(self.samples.len() / 2);
        let most = |half: &[(Duration, Usage)]| half.iter().map(|(_, usage)| of(usage)).max();
        (most(first).unwrap_or_default(), most(second).unwrap_or_default())
    }

    fn write_csv(&self, name: &str) -> PathBuf {
        let mut csv = "seconds,rss_bytes,descriptors,threads\n".to_owned();
        for (time, usage) in &self.samples {
            let Usage { rss, descriptors, threads } = usage;
            writeln!(csv, "{:.1},{rss},{descriptors},{threads}", time.as_secs_f64()).unwrap();
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, csv).unwrap();
        path
    }
}

async fn soak(plan: Plan, flags: &[&str]) -> Soaked {
    let server = Arc::new(Process::mock(flags, &SETTINGS));
    let address = server.address();
    let traffic = Traffic::new();
    let target = Target::new(Arc::new(Pool::new(address)), {
        let traffic = traffic.clone();
        move |index| traffic.mixed(index)
    });
    Scrape::of_deserted(address).await;
    let before = server.usage();
    let sampling = tokio::spawn(sample(Arc::clone(&server), plan));
    let leaving = tokio::spawn(async move {
        let began = Instant::now();
        let mut ticks = interval(Duration::from_secs_f64(1.0 / FAULTS));
        for index in 0.. {
            ticks.tick().await;
            if began.elapsed() > plan.length {
                return;
            }
            leave(address, &traffic, index).await;
        }
    });
    let tally = target.open_loop(RATE, plan.length).await;
    leaving.await.unwrap();
    let samples = sampling.await.unwrap();
    drop(target);
    Scrape::of_deserted(address).await;
    let rest = (before, server.usage());
    Arc::into_inner(server).expect("nobody reads it any more").stop().await;
    Soaked { tally, samples, rest }
}

async fn sample(server: Arc<Process>, plan: Plan) -> Vec<(Duration, Usage)> {
    let began = Instant::now();
    let mut ticks = interval(plan.sample);
    let mut samples = Vec::new();
    while began.elapsed() < plan.length {
        ticks.tick().await;
        samples.push((began.elapsed(), server.usage()));
    }
    samples
}

/// Prints a run and checks what does not need the slope.
fn check(soaked: &Soaked, name: &str) {
    let (descriptors, threads) =
        (soaked.most(|usage| usage.descriptors), soaked.most(|usage| usage.threads));
    eprintln!("{}\nreadings in {}", soaked.tally, soaked.write_csv(name).display());
    eprintln!("most descriptors and threads, first and second half: {descriptors:?}, {threads:?}");
    eprintln!("at rest, before and after: {:?}", soaked.rest);
    assert_eq!(soaked.tally.sent(), soaked.tally.answered(), "{}", soaked.tally);
    let failed = soaked.tally.statuses().find(|status| *status >= 500);
    assert_eq!(failed, None, "{}", soaked.tally);
    // The last scrape's own connection may be closing yet.
    assert!(soaked.rest.1.descriptors <= soaked.rest.0.descriptors + 1, "{:?}", soaked.rest);
}

fn tell(slope: Slope) {
    let mebibytes = |bytes: f64| bytes / 1024.0 / 1024.0;
    eprintln!(
        "memory, second half: {:+.2} MiB/h, 95 % interval {:+.2} to {:+.2}",
        mebibytes(slope.estimate),
        mebibytes(slope.least),
        mebibytes(slope.most)
    );
}

/// `BLIP_SOAK_MINUTES`, else this many.
#[expect(clippy::disallowed_methods, reason = "a run of hours is asked for where it is started")]
fn minutes(default: u64) -> Duration {
    let set = std::env::var("BLIP_SOAK_MINUTES").ok();
    Duration::from_secs(60 * set.map_or(default, |minutes| minutes.parse().expect("minutes")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_little_soak_leaves_no_descriptor_behind_and_writes_its_readings() {
    let plan = Plan { length: Duration::from_secs(4), sample: Duration::from_millis(25) };
    let soaked = soak(plan, &[]).await;
    check(&soaked, "soak-short.csv");
    assert!(soaked.samples.len() >= 80, "{} readings", soaked.samples.len());
    tell(Slope::of_second_half(&soaked.rss()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    let plan = Plan { length: minutes(35), sample: Duration::from_secs(5) };
    let soaked = soak(plan, &[]).await;
    check(&soaked, "soak.csv");
    let slope = Slope::of_second_half(&soaked.rss());
    tell(slope);
    assert!(!slope.shows_a_leak(), "{slope:?}");
    let (first, second) = soaked.most(|usage| usage.descriptors);
    assert!(second <= first + 2, "descriptors: {first}, then {second}");
    let (first, second) = soaked.most(|usage| usage.threads);
    assert!(second <= first + 2, "threads: {first}, then {second}");
}

/// Each encoded image leaves 4 KiB behind: some 70 MiB an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long_leak() {
    let plan = Plan { length: minutes(10), sample: Duration::from_secs(2) };
    let soaked = soak(plan, &["--leak-bytes", "4096"]).await;
    check(&soaked, "soak-leak.csv");
    let slope = Slope::of_second_half(&soaked.rss());
    tell(slope);
    assert!(slope.shows_a_leak(), "a server that leaks on purpose passed: {slope:?}");
}
