//! [`Trouble`]: whether the units of a worker have failed recently. New calls avoid such a worker while there are others.
//! Without this, a worker whose device is full would fail every call at once, always have the shortest queue, and so
//! attract all calls.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::sync::Mutex;

/// For how long calls avoid a worker after a unit that failed entirely; doubled with every further failure in a row.
const FIRST: Duration = Duration::from_secs(1);
/// The longest such time. Afterwards the next call tries the worker again.
const LONGEST: Duration = Duration::from_secs(30);

/// The recent failures of a worker. The worker records them, and the engine's handle reads them.
pub(crate) struct Trouble(Mutex<Option<Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    last: Instant,
    avoid_for: Duration,
}

impl Trouble {
    pub(crate) fn none() -> Self {
        Self(Mutex::new(None))
    }

    /// Records a unit of which every item failed, for whatever reason.
    pub(crate) fn failed(&self, now: Instant) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let avoid_for = failures.map_or(FIRST, |before| (before.avoid_for * 2).min(LONGEST));
        *failures = Some(Failures { last: now, avoid_for });
    }

    /// Records a unit with at least one good item.
    pub(crate) fn succeeded(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True if calls should avoid the worker now.
    pub(crate) fn is_recent(&self, now: Instant) -> bool {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.is_some_and(|it| now.saturating_duration_since(it.last) < it.avoid_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_avoided_for_longer_after_every_failure_and_at_once_trusted_after_a_success() {
        let (trouble, start) = (Trouble::none(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!trouble.is_recent(start));
        trouble.failed(start);
        assert!(trouble.is_recent(start) && !trouble.is_recent(after(1)));
        trouble.failed(after(1));
        assert!(trouble.is_recent(after(2)) && !trouble.is_recent(after(3)));
        (0..9).for_each(|_| trouble.failed(after(10)));
        assert!(trouble.is_recent(after(39)) && !trouble.is_recent(after(40)));
        trouble.succeeded();
        assert!(!trouble.is_recent(after(10)));
    }
}
