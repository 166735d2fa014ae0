//! Plays one schedule: starts the engine and its callers, ends the engine in one of several ways, and checks what
//! happened.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::client;
use super::tally::Tally;
use super::world::{ExploredWorld, yield_randomly};
use crate::engine::Engine;

/// How the engine of one schedule is ended, either before or after its clients have finished.
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

/// Runs one schedule from start to end.
pub(super) fn play(total: &Tally) {
    let (world, engine) = ExploredWorld::start(total);
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

impl ExploredWorld {
    /// Moves the clock far enough to pass short deadlines.
    fn let_time_pass(&self) {
        for _ in 0..2 {
            yield_randomly(40);
            self.clock.advance(Duration::from_millis(thread_rng().gen_range(0..30)));
        }
    }

    /// Ends the engine in the way that `ending` describes. Returns the engine if it must still be joined.
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
