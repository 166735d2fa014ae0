//! Counts what happened over all schedules.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that must happen in at least one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Submitted,
    Answered,
    Streamed,
    Failed,
    Expired,
    ShutDown,
    WorkerDown,
    Left,
    RefusedFull,
    RefusedDraining,
    RefusedDown,
    WorkerDied,
}

const EVENTS: [Event; 12] = [
    Event::Submitted,
    Event::Answered,
    Event::Streamed,
    Event::Failed,
    Event::Expired,
    Event::ShutDown,
    Event::WorkerDown,
    Event::Left,
    Event::RefusedFull,
    Event::RefusedDraining,
    Event::RefusedDown,
    Event::WorkerDied,
];

/// How often each event happened. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<[AtomicU64; EVENTS.len()]>);

impl Tally {
    pub(super) fn count(&self, event: Event) {
        self.0[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of(&self, event: Event) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }

    pub(super) fn assert_everything_happened(&self) {
        for event in EVENTS {
            assert!(self.of(event) > 0, "no schedule had {event:?}:\n{self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in EVENTS {
            write!(f, "{event:?} {}, ", self.of(event))?;
        }
        Ok(())
    }
}
