//! The engine under thread schedules that a checker (shuttle) chooses. Clients submit, stream, wait and disconnect;
//! deadlines pass; the engine is drained, aborted or stopped; or the worker dies. Each of these can happen between any
//! two operations.
//!
//! The tests run the real handle, admission controller and worker loop (see `sync`), with the fake backend and a clock
//! that moves with every reading. They check that in every schedule
//! - each submitted task is answered once, and nobody waits for ever,
//! - nothing is admitted after a drain,
//! - after a client has disconnected, a deadline has passed or the engine was aborted, at most the unit in progress
//!   still runs for the tasks concerned,
//! - outcomes add up to the submitted tasks, and the numbers of rows, bytes and groups return to zero.
//!
//! Files:
//! - `play`: one schedule from start to end.
//! - `world`: the engine of one schedule, and the state that all its threads share.
//! - `client`: one caller.
//! - `admission`: the admission controller alone, under every possible schedule.
//! - `verdict`: checks what must hold at the end of a schedule.
//! - `pace`: the points between operations at which the checker may switch threads.
//! - `tally`: counts what happened over all schedules, so that no check passes only because nothing happened.
//!
//! The long version is run with `cargo test --release --lib -- --ignored --nocapture schedules::long`. A failure prints
//! its schedule for `shuttle::replay(|| play::play(&Tally::default()), "...")`. For a random schedule it also prints
//! the seed; with `SHUTTLE_RANDOM_SEED=<seed>`, the next run starts with that schedule.

mod admission;
mod client;
mod pace;
mod play;
mod tally;
mod verdict;
mod world;

use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::sync::{Arc, Once};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

use self::tally::Tally;

/// Bug depth of shuttle's PCT scheduler (probabilistic concurrency testing): one more than the number of preemptions in
/// a schedule.
const PCT_DEPTH: usize = 3;

/// Fixed seed, so that every run explores the same schedules.
const SEED: u64 = 20;

/// Number of schedules of each kind: `SHORT` in every test run, `LONG` in the ignored test.
const SHORT: usize = 6000;
const LONG: usize = 100_000;

/// Stack size of a thread under the checker, in bytes.
const STACK: usize = 512 << 10;

/// Plays every schedule that `scheduler` chooses. Returns the number of schedules and the counts of what happened in
/// them.
fn explore(scheduler: impl Scheduler + 'static) -> (usize, Tally) {
    let tally = Tally::default();
    let seen = tally.clone();
    let count = run(scheduler, move || play::play(&seen));
    (count, tally)
}

fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) -> usize {
    quieten();
    Runner::new(scheduler, config()).run(body)
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK;
    // The warning says that memory orderings are not explored; `sync` documents that.
    config.silence_warnings = true;
    config
}

/// Installs a panic hook. Shuttle reports every panic as a failure of its schedule. This hook hides the scripted panics
/// of the fake backend, and leaves panics of tests outside shuttle to the usual hook.
fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual: Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = Arc::from(take_hook());
        let before = Arc::clone(&usual);
        set_hook(Box::new(move |panic| before(panic)));
        // The first run installs shuttle's hook, which calls the hook that is set above.
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
