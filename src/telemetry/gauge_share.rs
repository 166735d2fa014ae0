//! One part's share of a gauge to which several parts add, such as the workers of several GPUs.
//!
//! To count things in progress, use [`GaugeGuard`](super::metrics::GaugeGuard).

use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::IntGauge;

/// One part's share of a gauge, which shows the sum of all shares. Dropping the share takes it out of the sum.
#[derive(Debug)]
pub struct GaugeShare {
    gauge: IntGauge,
    value: AtomicI64,
}

impl GaugeShare {
    /// Adds a share of 0.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        Self { gauge: gauge.clone(), value: AtomicI64::new(0) }
    }

    /// Changes the share to `value`; one that no `i64` can hold counts as the largest.
    pub fn set(&self, value: impl TryInto<i64>) {
        let value = value.try_into().unwrap_or(i64::MAX);
        self.gauge.add(value - self.value.swap(value, Ordering::Relaxed));
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_shows_the_sum_of_its_shares() {
        let gauge = IntGauge::new("rows", "Rows.").unwrap();
        let [first, second] = [GaugeShare::new(&gauge), GaugeShare::new(&gauge)];
        first.set(3);
        second.set(4_usize);
        assert_eq!(gauge.get(), 7);
        first.set(1);
        assert_eq!(gauge.get(), 5);
        drop(second);
        assert_eq!(gauge.get(), 1);
        first.set(u64::MAX);
        assert_eq!(gauge.get(), i64::MAX);
    }
}
