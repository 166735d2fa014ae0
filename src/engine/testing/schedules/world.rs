//! [`ExploredWorld`]: the engine of one schedule, and the state that its callers, its ending and its verdict share.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shuttle::rand::{Rng, thread_rng};

use super::pace::{PacedBackend, ticking};
use super::tally::{Event, Tally};
use crate::engine::sync::point;
use crate::engine::testing::ManualClock;
use crate::engine::testing::fake::{self, FakeBackend, FakeCall, FakeControl, FakeFault, FakeMark};
use crate::engine::{Engine, EngineContext, EngineHandle, EngineSettings};
use crate::telemetry::metrics::Metrics;

/// The engine's capacity in rows. It is so small that some clients are rejected.
pub(super) const CAPACITY: usize = 5;

/// The image that makes backend calls fail in worlds with faults.
pub(super) const POISONED: u8 = 250;

/// An image that several tasks use.
pub(super) const SHARED: u8 = 251;

/// Flags for the endings that have begun. Each flag is set before the action that it names.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) drain: AtomicBool,
    pub(super) abort: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) kill: AtomicBool,
}

/// A task that nobody waits for any more.
pub(super) struct Over {
    /// Identifies the task's units; `None` if another task has the same mark.
    pub(super) mark: Option<FakeMark>,
    pub(super) deadline: Instant,
    /// Number of units that had begun when the task's client stopped waiting.
    pub(super) at: usize,
    /// Number of units that may still run for the task.
    pub(super) more: usize,
}

/// State that all threads of one schedule share.
pub(super) struct ExploredWorld {
    pub(super) handle: EngineHandle,
    pub(super) control: FakeControl,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: ManualClock,
    /// Counts over all schedules so far.
    pub(super) total: Tally,
    /// Counts of this schedule only.
    pub(super) tally: Tally,
    pub(super) is_faulty: bool,
    pub(super) begun: Begun,
    /// Set after `drain` has returned.
    pub(super) has_drained: AtomicBool,
    /// Set after a drain, when no admitted call is left.
    pub(super) was_emptied: AtomicBool,
    /// Number of units that had begun when `abort` returned.
    pub(super) aborted_at: AtomicUsize,
    /// When each unit began.
    pub(super) units: Arc<Mutex<Vec<Instant>>>,
    pub(super) over: Mutex<Vec<Over>>,
    pub(super) sent: AtomicU64,
    next_mark: AtomicU8,
}

/// Lets other threads run at a random number of switch points, at most `most`.
pub(super) fn yield_randomly(most: usize) {
    for _ in 0..thread_rng().gen_range(0..=most) {
        point();
    }
}

impl ExploredWorld {
    pub(super) fn start(total: &Tally) -> (Arc<Self>, Engine) {
        let mut random = thread_rng();
        let (backend, control) = FakeBackend::new(fake::models());
        control.set_text_length(2);
        let is_faulty = random.gen_bool(0.2);
        if is_faulty {
            let fault = if random.gen_bool(0.5) { FakeFault::Panic } else { FakeFault::Error };
            control.fault(FakeCall::Encode, FakeMark::Image(POISONED), fault);
        }
        let clock = ManualClock::start();
        let units = Arc::new(Mutex::new(Vec::new()));
        let backend = PacedBackend { backend, clock: clock.clone(), begun: Arc::clone(&units) };
        let linger = if random.gen_bool(0.3) { 6 } else { 0 };
        let settings = EngineSettings {
            capacity_rows: CAPACITY,
            linger: Duration::from_millis(linger),
            ..EngineSettings::default()
        };
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let context = EngineContext {
            clock: ticking(&clock),
            ..EngineContext::without_server(Arc::clone(&metrics))
        };
        let engine = Engine::start(backend, settings, context).unwrap();
        let world = Self {
            handle: engine.handle(),
            control,
            metrics,
            clock,
            total: total.clone(),
            tally: Tally::default(),
            is_faulty,
            begun: Begun::default(),
            has_drained: AtomicBool::new(false),
            was_emptied: AtomicBool::new(false),
            aborted_at: AtomicUsize::new(usize::MAX),
            units,
            over: Mutex::new(Vec::new()),
            sent: AtomicU64::new(0),
            next_mark: AtomicU8::new(1),
        };
        (Arc::new(world), engine)
    }

    /// Returns a mark that no other task has, for the first byte of an image or for a token.
    pub(super) fn fresh_mark(&self) -> u8 {
        self.next_mark.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the number of units that have begun.
    pub(super) fn units_begun(&self) -> usize {
        self.control.log().len()
    }

    pub(super) fn count(&self, event: Event) {
        self.tally.count(event);
        self.total.count(event);
    }

    pub(super) fn record_over(&self, over: Over) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).push(over);
    }

    /// True if the worker may have panicked.
    pub(super) fn may_die(&self) -> bool {
        self.begun.kill.load(Ordering::SeqCst)
    }

    /// True if the worker may have ended.
    pub(super) fn may_be_down(&self) -> bool {
        self.may_die() || self.begun.stop.load(Ordering::SeqCst)
    }
}
