//! Counts the requests that are being answered. At the end of the drain time, `transport` reports how many of them are
//! still unanswered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::IntGauge;

use crate::telemetry::metrics::GaugeGuard;

/// Number of requests whose response is not complete; also shown as a gauge. Clones share the count.
#[derive(Debug, Clone)]
pub(crate) struct RequestsInFlight {
    count: Arc<AtomicU64>,
    gauge: IntGauge,
}

/// A guard that counts one request until the guard is dropped.
#[derive(Debug)]
pub(crate) struct RequestInFlight {
    count: Arc<AtomicU64>,
    _gauge: GaugeGuard,
}

impl RequestsInFlight {
    pub(crate) fn new(gauge: IntGauge) -> Self {
        Self { count: Arc::default(), gauge }
    }

    /// Counts a request for as long as the returned guard lives.
    pub(crate) fn begin(&self) -> RequestInFlight {
        self.count.fetch_add(1, Ordering::Relaxed);
        RequestInFlight { count: Arc::clone(&self.count), _gauge: GaugeGuard::new(&self.gauge) }
    }

    /// Returns the number of requests in flight.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_gauge_follow_the_guards() {
        let gauge = IntGauge::new("requests", "requests").unwrap();
        let requests = RequestsInFlight::new(gauge.clone());
        let (first, second) = (requests.begin(), requests.clone().begin());
        assert_eq!((requests.count(), gauge.get()), (2, 2));
        drop(first);
        assert_eq!((requests.count(), gauge.get()), (1, 1));
        drop(second);
        assert_eq!((requests.count(), gauge.get()), (0, 0));
    }
}
