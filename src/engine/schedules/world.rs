//! The engine of one schedule, its callers, and how it ends.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::client;
use super::pace::{PacedBackend, ticking};
use super::tally::Tally;
use super::verdict::Over;
use crate::engine::fake::{
    self, FakeBackend, FakeCall, FakeControl, FakeFault, FakeMark, ManualClock,
};
use crate::engine::sync::point;
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

/// State that all threads of one schedule share.
pub(super) struct World {
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

/// How a world ends, either before its clients have finished or after.
#[derive(Clone, Copy)]
enum Ending {
    /// Nothing happens until all clients have finished.
    Quiet,
    Drain,
    Abort,
    /// Drain first, then abort.
    Cut,
    /// Calls `Engine::join`, or drops the engine, while clients come and go.
    Stop {
        join: bool,
    },
    /// The worker's thread panics outside the backend.
    Kill,
}

impl Ending {
    fn choose() -> Self {
        match thread_rng().gen_range(0..8) {
            0 => Self::Quiet,
            1 | 2 => Self::Drain,
            3 => Self::Abort,
            4 => Self::Cut,
            5 => Self::Stop { join: true },
            6 => Self::Stop { join: false },
            _ => Self::Kill,
        }
    }
}

/// Lets other threads run at a random number of switch points, at most `most`.
pub(super) fn yield_randomly(most: usize) {
    for _ in 0..thread_rng().gen_range(0..=most) {
        point();
    }
}

/// Runs one schedule from start to end.
pub(super) fn play(total: &Tally) {
    let (world, engine) = World::start(total);
    let threads: Vec<_> = (0..thread_rng().gen_range(1..=3))
        .map(|_| {
            let world = Arc::clone(&world);
            thread::spawn(move || client::run(&world))
        })
        .collect();
    let time = {
        let world = Arc::clone(&world);
        thread::spawn(move || world.let_time_pass())
    };
    let ending = Ending::choose();
    let end = {
        let world = Arc::clone(&world);
        thread::spawn(move || world.end(ending, engine))
    };
    for thread in threads {
        thread.join().unwrap();
    }
    time.join().unwrap();
    let engine = end.join().unwrap();
    block_on(world.handle.drained());
    if let Some(engine) = engine {
        engine.join();
    }
    block_on(world.handle.ended());
    world.judge();
}

impl World {
    fn start(total: &Tally) -> (Arc<Self>, Engine) {
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

    /// Returns a first byte or token that no other task has.
    pub(super) fn fresh_mark(&self) -> u8 {
        self.next_mark.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the number of units that have begun.
    pub(super) fn units_begun(&self) -> usize {
        self.control.log().len()
    }

    /// Moves the clock far enough to pass short deadlines.
    fn let_time_pass(&self) {
        for _ in 0..2 {
            yield_randomly(40);
            self.clock.advance(Duration::from_millis(thread_rng().gen_range(0..30)));
        }
    }

    /// Ends the world. Returns the engine if it must still be joined.
    fn end(&self, ending: Ending, engine: Engine) -> Option<Engine> {
        yield_randomly(80);
        match ending {
            Ending::Quiet => {}
            Ending::Drain => self.drain(),
            Ending::Abort => self.abort(),
            Ending::Cut => {
                self.begun.drain.store(true, Ordering::SeqCst);
                self.handle.drain();
                self.has_drained.store(true, Ordering::SeqCst);
                yield_randomly(40);
                self.abort();
            }
            Ending::Stop { join } => {
                self.begun.drain.store(true, Ordering::SeqCst);
                self.begun.stop.store(true, Ordering::SeqCst);
                if join {
                    engine.join();
                }
                return None;
            }
            Ending::Kill => {
                self.begun.kill.store(true, Ordering::SeqCst);
                self.control.kill_worker();
            }
        }
        Some(engine)
    }

    fn drain(&self) {
        self.begun.drain.store(true, Ordering::SeqCst);
        self.handle.drain();
        self.has_drained.store(true, Ordering::SeqCst);
        block_on(self.handle.drained());
        self.was_emptied.store(true, Ordering::SeqCst);
    }

    fn abort(&self) {
        self.begun.drain.store(true, Ordering::SeqCst);
        self.begun.abort.store(true, Ordering::SeqCst);
        self.handle.abort();
        self.has_drained.store(true, Ordering::SeqCst);
        self.aborted_at.store(self.units_begun(), Ordering::SeqCst);
    }
}
