//! The monotonic clock of the process.

use std::time::{Duration, Instant};

/// Returns the current time. On the thread of a tokio runtime whose time is paused, which only tests do, this is the
/// runtime's time; everywhere else it is the time of the system.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns the time that has passed since `start`.
pub(crate) fn elapsed(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}
