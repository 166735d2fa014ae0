//! The demo models under five times what they can do, every request with a 12-megapixel picture that nobody has seen:
//! what is refused costs no decoding, and as much is served as without the overload. For `--release`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Pool;
use super::open_loop::Target;
use super::process::{Keep, Process};
use super::scrape::Scrape;
use super::tally::Tally;
use super::traffic::{Ask, numbered, photograph};

const SIZE: (u32, u32) = (4000, 3000);
const CLIENTS: usize = 16;
/// The default of `engine.max_queue_wait_ms`.
const MAX_QUEUE_WAIT: Duration = Duration::from_secs(10);
const MEASURE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_secs(60);
const OVERLOAD: f64 = 5.0;

async fn step(target: &Target, server: &Process, rate: f64) -> (Tally, f64, u64) {
    let decoded = |scrape: &Scrape| scrape.sum("blip_image_format_total", &[]);
    let before = Scrape::of_idle(server.address()).await;
    let began = Instant::now();
    let tally = target.open_loop(rate, STEP).await;
    let goodput = tally.with(200) as f64 / began.elapsed().as_secs_f64();
    let after = Scrape::of_idle(server.address()).await;
    (tally, goodput, decoded(&after) - decoded(&before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long"]
async fn long() {
    let photograph = photograph(SIZE);
    eprintln!("pictures of {} x {}, {} KB", SIZE.0, SIZE.1, photograph.len() / 1000);
    let server = Process::start("serve", &[], &[("LOG__SAMPLE_EVERY", "0")], Keep::Tail);
    let target = Target::new(Arc::new(Pool::new(server.address())), move |index| {
        Ask::picture("/caption", numbered(&photograph, index))
    });
    let (idle, _) = target.closed_loop(1, MEASURE).await;
    eprintln!("idle: {idle}");
    let (saturated, capacity) = target.closed_loop(CLIENTS, MEASURE).await;
    eprintln!("capacity {capacity:.1}/s: {saturated}");
    let (once, goodput, decoded) = step(&target, &server, capacity).await;
    eprintln!("1 x: goodput {goodput:.1}/s, {decoded} decoded, {once}");
    let (overload, under_load, decoded) = step(&target, &server, capacity * OVERLOAD).await;
    let peak = server.peak_rss() >> 20;
    eprintln!(
        "{OVERLOAD} x: goodput {under_load:.1}/s, {decoded} decoded, {overload}; peak {peak} MiB"
    );
    assert_eq!(overload.sent(), overload.answered(), "{overload}");
    assert!(overload.statuses().all(|status| [200, 503, 504].contains(&status)), "{overload}");
    let (served, late) = (overload.with(200), overload.with(504));
    assert!((served..=served + late).contains(&decoded), "what is refused is not decoded");
    let (p99, most) = (overload.quantile(990), MAX_QUEUE_WAIT + idle.quantile(990) * 2);
    assert!(p99 <= most, "p99 {p99:?}, at most {most:?} is wanted");
    assert!(under_load >= 0.9 * goodput, "goodput {under_load:.1}/s, {goodput:.1}/s at 1 x");
    drop(target);
    Scrape::of_deserted(server.address()).await;
    server.stop().await;
}
