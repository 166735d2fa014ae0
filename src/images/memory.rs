//! Load shedding by measured memory: above a high-water mark, new decodes are rejected even if the byte budget is not
//! used up.

use super::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a measurement is reused. Reading the resident memory takes about 20 us.
const FRESH: Duration = Duration::from_millis(50);

/// Compares the process's resident memory with a high-water mark.
pub(super) struct HighWaterMark {
    mark_bytes: Option<u64>,
    resident_bytes: fn() -> Option<u64>,
    last: Mutex<Option<(Instant, bool)>>,
}

impl HighWaterMark {
    /// If `mark_bytes` is `None`, the mark is never exceeded.
    pub(super) fn new(mark_bytes: Option<u64>, resident_bytes: fn() -> Option<u64>) -> Self {
        Self { mark_bytes, resident_bytes, last: Mutex::new(None) }
    }

    /// True if the resident memory exceeds the mark; false if it cannot be measured.
    pub(super) fn is_exceeded(&self, now: Instant) -> bool {
        let Some(mark) = self.mark_bytes else { return false };
        let mut last = lock(&self.last);
        match *last {
            Some((at, passed)) if now.saturating_duration_since(at) < FRESH => passed,
            _ => {
                let passed = (self.resident_bytes)().is_some_and(|bytes| bytes > mark);
                *last = Some((now, passed));
                passed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_passed_above_it_and_measured_again_later() {
        let now = Instant::now();
        let passed = |mark, resident| HighWaterMark::new(mark, resident).is_exceeded(now);
        assert!(passed(Some(99), || Some(100)));
        assert!(!passed(Some(100), || Some(100)));
        assert!(!passed(Some(99), || None));
        assert!(!passed(None, || Some(100)));
        let mut mark = HighWaterMark::new(Some(99), || Some(100));
        assert!(mark.is_exceeded(now));
        mark.resident_bytes = || Some(1);
        assert!(mark.is_exceeded(now + FRESH / 2));
        assert!(!mark.is_exceeded(now + FRESH));
    }
}
