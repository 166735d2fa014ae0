//! The engine's queue under schedules that a checker (shuttle) chooses: clients that submit, stream, wait and leave,
//! deadlines that pass, drain, abort, stop, and the worker's death, each at any point between any two operations.
//!
//! It is the real handle, ledger and worker loop (see `sync`), with the fake backend and a clock that moves on with
//! every look at it. In every schedule each task that was submitted is answered once and nobody waits for ever; nothing
//! is admitted after a drain; nothing runs for a client that has left, for a deadline that has passed or after an
//! abort, beyond the unit in progress; outcomes add up to the submitted; and rows, bytes and groups go back to zero.
//!
//! - `world`: one schedule's engine and how it ends.
//! - `client`: one caller.
//! - `ledger`: its way in and out alone, under every schedule there is.
//! - `verdict`: what holds when all is over.
//! - `pace`: the points between operations at which the checker may switch threads.
//! - `tally`: what happened over all schedules, so that none of this holds only because nothing happened.
//!
//! The long form: `cargo test --release --lib -- --ignored --nocapture engine::schedules::long`.
//! A failure prints its schedule for `shuttle::replay(|| world::play(&Tally::default()), "...")`; that of a random
//! schedule also its seed, and `SHUTTLE_RANDOM_SEED=<seed>` makes it the first schedule of the next run.

mod client;
mod ledger;
mod pace;
mod tally;
mod verdict;
mod world;

use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::{Arc, Once};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

use self::tally::Tally;

/// Preemptions that a PCT schedule chooses, plus one.
const PCT_DEPTH: usize = 3;

/// The same schedules every time.
const SEED: u64 = 20;

/// Schedules of each kind in the short form and in the long one.
const SHORT: usize = 6000;
const LONG: usize = 100_000;

/// Bytes of a thread's stack under the checker.
const STACK: usize = 512 << 10;

/// Runs worlds under `scheduler`; how many, and what happened in them.
fn explore(scheduler: impl Scheduler + 'static) -> (usize, Tally) {
    let tally = Tally::default();
    let seen = tally.clone();
    let count = run(scheduler, move || world::play(&seen));
    (count, tally)
}

fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) -> usize {
    quieten();
    Runner::new(scheduler, config()).run(body)
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK;
    // Said once: orderings are not explored (`sync`).
    config.silence_warnings = true;
    config
}

/// Shuttle reports every panic as the failure of its schedule: not those that the fake backend is told to have, nor
/// those of tests that it does not run.
fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = Arc::from(take_hook());
        let before = Arc::clone(&usual);
        set_hook(Box::new(move |panic| before(panic)));
        // The first run puts shuttle's hook before that one.
        Runner::new(DfsScheduler::new(Some(1), false), config()).run(|| {});
        let shuttles = take_hook();
        set_hook(Box::new(move |panic| {
            let is_scripted = panic
                .payload()
                .downcast_ref::<&str>()
                .is_some_and(|text| text.contains("scripted"));
            let is_explored = shuttle::current::try_get_current_task().is_some();
            match (is_explored, is_scripted) {
                (true, true) => {}
                (true, false) => shuttles(panic),
                (false, _) => usual(panic),
            }
        }));
    });
}

#[test]
fn under_any_schedule_every_task_is_answered_once_and_nothing_is_left() {
    let (count, tally) = explore(RandomScheduler::new_from_seed(SEED, SHORT));
    assert_eq!(count, SHORT);
    tally.assert_everything_happened();
}

#[test]
fn under_few_preemptions_at_any_point_every_task_is_answered_once_and_nothing_is_left() {
    let (count, tally) = explore(PctScheduler::new_from_seed(SEED, PCT_DEPTH, SHORT));
    assert_eq!(count, SHORT);
    tally.assert_everything_happened();
}

#[test]
#[ignore = "long"]
fn long() {
    let start = std::time::Instant::now();
    let (count, tally) = explore(RandomScheduler::new_from_seed(SEED + 1, LONG));
    assert_eq!(count, LONG);
    eprintln!("random: {count} schedules in {:.0?}\n{tally}", start.elapsed());
    tally.assert_everything_happened();
    let start = std::time::Instant::now();
    let (count, tally) = explore(PctScheduler::new_from_seed(SEED + 2, PCT_DEPTH, LONG));
    assert_eq!(count, LONG);
    eprintln!("PCT, depth {PCT_DEPTH}: {count} schedules in {:.0?}\n{tally}", start.elapsed());
    tally.assert_everything_happened();
}
