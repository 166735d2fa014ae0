//! The worker's heartbeat shows that the worker thread still makes progress. The worker records each beat;
//! [`EngineHandle`] reads how long ago the last one was.
//!
//! [`EngineHandle`]: super::EngineHandle

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::Gauge;

use crate::platform;

/// Time of the last beat. It is not read from the engine's clock, because tests advance that clock by hand, and such a
/// clock cannot show that a thread hangs.
pub(crate) struct Heartbeat {
    started: Instant,
    /// Last beat, in milliseconds after `started`.
    last_ms: AtomicU64,
    timestamp_seconds: Gauge,
}

impl Heartbeat {
    /// Creates a heartbeat whose first beat is now. Each beat sets the metric `timestamp_seconds` to the Unix time.
    pub(crate) fn new(timestamp_seconds: Gauge) -> Self {
        Self { started: platform::now(), last_ms: AtomicU64::new(0), timestamp_seconds }
    }

    /// Records that the worker is alive.
    pub(crate) fn beat(&self) {
        let elapsed = platform::elapsed(self.started).as_millis();
        self.last_ms.store(elapsed.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        self.timestamp_seconds.set(unix_seconds());
    }

    /// Returns the time of the last beat, in milliseconds after `started`.
    pub(crate) fn last(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// Returns the time since the last beat.
    pub(crate) fn age(&self) -> Duration {
        platform::elapsed(self.started).saturating_sub(Duration::from_millis(self.last()))
    }
}

/// Returns the wall-clock time in seconds since the Unix epoch; for metrics only.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
