//! Arrivals at a fixed rate that do not wait for answers, as strangers' requests come; and clients that do wait, to
//! find out what a server can do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::client::Pool;
use super::tally::Tally;
use super::traffic::Ask;

/// Arrivals are due in steps of this.
const TICK: Duration = Duration::from_millis(2);
/// Requests under way at most. A server that answers or refuses in time is far below; a run that meets this is not an
/// open loop any more, and says so.
const MOST_OUTSTANDING: usize = 8000;
/// More than the server's own deadline: a request that waits longer is one that the server has lost.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRESS: Duration = Duration::from_secs(10);

/// Where requests go, and which.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) pool: Arc<Pool>,
    pub(crate) ask: Arc<dyn Fn(u64) -> Ask + Send + Sync>,
    /// Numbers the requests of all runs.
    pub(crate) next: Arc<AtomicU64>,
}

impl Target {
    /// Requests made by `ask` from their numbers.
    pub(crate) fn new(pool: Arc<Pool>, ask: impl Fn(u64) -> Ask + Send + Sync + 'static) -> Self {
        Self { pool, ask: Arc::new(ask), next: Arc::default() }
    }

    async fn one(&self, arrival: Instant, tally: &Mutex<Tally>) {
        let ask = (self.ask)(self.next.fetch_add(1, Ordering::Relaxed));
        let outcome = self.pool.ask(&ask, PATIENCE).await;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.count(outcome, arrival.elapsed());
    }

    /// Sends `rate` requests a second for `length`, then waits for every answer. Latencies run from the time that a
    /// request was due at.
    ///
    /// # Panics
    /// When too many are under way.
    pub(crate) async fn open_loop(&self, rate: f64, length: Duration) -> Tally {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let room = Arc::new(Semaphore::new(MOST_OUTSTANDING));
        let mut running = JoinSet::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let began = Instant::now();
        let (mut sent, mut told) = (0_u32, began);
        while began.elapsed() < length {
            ticks.tick().await;
            while due(sent, rate) <= began.elapsed().min(length) {
                let permit = Arc::clone(&room).try_acquire_owned().expect("room for an open loop");
                let (target, tally) = (self.clone(), Arc::clone(&tally));
                let arrival = began + due(sent, rate);
                running.spawn(async move {
                    target.one(arrival, &tally).await;
                    drop(permit);
                });
                sent += 1;
            }
            while running.try_join_next().is_some() {}
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let so_far = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
                eprintln!("  {:>5.0?} {rate:.0}/s: {so_far}", began.elapsed());
            }
        }
        while running.join_next().await.is_some() {}
        Arc::into_inner(tally).expect("every request is over").into_inner().expect("no panic")
    }

    /// Lets `clients` send again and again for `length`, each once its last answer is there. The counts, and good
    /// answers a second.
    pub(crate) async fn closed_loop(&self, clients: usize, length: Duration) -> (Tally, f64) {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let over = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (target, tally, over) = (self.clone(), Arc::clone(&tally), Arc::clone(&over));
            running.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    target.one(Instant::now(), &tally).await;
                }
            });
        }
        sleep_until(began + length).await;
        over.store(true, Ordering::Relaxed);
        while running.join_next().await.is_some() {}
        let elapsed = began.elapsed().as_secs_f64();
        let tally = Arc::into_inner(tally).expect("every client is over");
        let tally = tally.into_inner().expect("no panic");
        let rate = tally.with(200) as f64 / elapsed;
        (tally, rate)
    }
}

/// When the `index`-th request of a run is due.
fn due(index: u32, rate: f64) -> Duration {
    Duration::from_secs_f64(f64::from(index) / rate)
}
