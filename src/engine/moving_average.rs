//! [`MovingAverage`]: an exponential moving average, from which the worker and admission control estimate costs.

/// An exponential moving average. It has no value until the first one is added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MovingAverage(Option<f64>);

impl MovingAverage {
    /// Creates an average that has a value from the beginning.
    pub(super) fn starting_at(value: f64) -> Self {
        Self(Some(value))
    }

    pub(super) fn value(self) -> Option<f64> {
        self.0
    }

    /// Returns this average, or one that starts at `value` if it has none yet.
    pub(super) fn or(self, value: Option<f64>) -> Self {
        Self(self.0.or(value))
    }

    /// Adds a value. `weight`, from 0 to 1, is its weight in the new average; about the last `1 / weight` values count. The
    /// first value counts in full.
    pub(super) fn add(&mut self, value: f64, weight: f64) {
        let old = self.0.unwrap_or(value);
        self.0 = Some(old + weight * (value - old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_counts_in_full_and_later_ones_by_their_weight() {
        let mut average = MovingAverage::default();
        assert_eq!(average.value(), None);
        average.add(8.0, 0.25);
        assert_eq!(average.value(), Some(8.0));
        average.add(4.0, 0.25);
        assert_eq!(average.value(), Some(7.0));
    }

    #[test]
    fn an_average_with_a_start_counts_the_first_value_by_its_weight() {
        for mut average in [MovingAverage::starting_at(1.0), MovingAverage::default().or(Some(1.0))]
        {
            average.add(0.0, 0.25);
            assert_eq!(average.or(Some(9.0)).value(), Some(0.75));
        }
    }
}
