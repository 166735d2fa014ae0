//! [`FailureBackoff`]: whether the units of a worker have failed recently. New calls avoid such a worker while there are
//! others. Without this, a worker whose device is full would fail every call at once, always have the shortest queue, and
//! so attract all calls.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::sync::Mutex;

/// For how long calls avoid a worker after a unit that failed entirely; doubled with every further failure in a row.
const FIRST: Duration = Duration::from_secs(1);
/// The longest such time. Afterwards the next call tries the worker again.
const LONGEST: Duration = Duration::from_secs(30);

/// The recent failures of a worker. The worker records them, and the engine's handle reads them.
pub(crate) struct FailureBackoff(Mutex<Option<Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    last: Instant,
    avoid_for: Duration,
}

impl FailureBackoff {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Records a unit of which every item failed, for whatever reason.
    pub(crate) fn record_failure(&self, now: Instant) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let avoid_for = failures.map_or(FIRST, |before| (before.avoid_for * 2).min(LONGEST));
        *failures = Some(Failures { last: now, avoid_for });
    }

    /// Records a unit with at least one good item.
    pub(crate) fn record_success(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True if calls should avoid the worker now.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.is_some_and(|it| now.saturating_duration_since(it.last) < it.avoid_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_avoided_for_longer_after_every_failure_and_at_once_trusted_after_a_success() {
        let (backoff, start) = (FailureBackoff::new(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!backoff.is_active(start));
        backoff.record_failure(start);
        assert!(backoff.is_active(start) && !backoff.is_active(after(1)));
        backoff.record_failure(after(1));
        assert!(backoff.is_active(after(2)) && !backoff.is_active(after(3)));
        (0..9).for_each(|_| backoff.record_failure(after(10)));
        assert!(backoff.is_active(after(39)) && !backoff.is_active(after(40)));
        backoff.record_success();
        assert!(!backoff.is_active(after(10)));
    }
}
