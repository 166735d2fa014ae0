//! Does a series of readings grow? A straight line through means of blocks, with the interval that its slope lies in.
//!
//! Readings of memory seconds apart are not independent: an allocator keeps or gives back in strides. Means over blocks
//! much longer than a stride nearly are, so the interval of ordinary least squares over the blocks holds where that over
//! the readings would be far too narrow.

/// Blocks that a series is cut into.
const BLOCKS: usize = 20;
/// Two-sided 95 % quantile of Student's t for 18 degrees of freedom: 20 blocks less the line's two parameters.
const T_95: f64 = 2.101;
/// Growth that the plan tolerates, bytes an hour.
const TOLERATED: f64 = 1024.0 * 1024.0;

/// One reading: seconds since some start, and a value.
pub(crate) type Reading = (f64, f64);

/// The slope of a series, in units an hour, and the 95 % interval of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slope {
    /// The line's slope.
    pub(crate) estimate: f64,
    /// Lower end of the interval.
    pub(crate) least: f64,
    /// Upper end of the interval.
    pub(crate) most: f64,
}

impl Slope {
    /// The slope of the second half of a series, in which a server is warm.
    ///
    /// # Panics
    /// With fewer than two readings a block.
    pub(crate) fn of_second_half(readings: &[Reading]) -> Self {
        Self::of(&readings[readings.len() / 2..])
    }

    fn of(readings: &[Reading]) -> Self {
        assert!(readings.len() >= 2 * BLOCKS, "{} readings are too few", readings.len());
        let blocks: Vec<Reading> = (0..BLOCKS)
            .map(|block| {
                let place = |block: usize| block * readings.len() / BLOCKS;
                mean(&readings[place(block)..place(block + 1)])
            })
            .collect();
        let (middle, level) = mean(&blocks);
        let spread: f64 = blocks.iter().map(|(time, _)| (time - middle).powi(2)).sum();
        let shared: f64 =
            blocks.iter().map(|(time, value)| (time - middle) * (value - level)).sum();
        let slope = shared / spread;
        let residual = |(time, value): &Reading| value - level - slope * (time - middle);
        let squares: f64 = blocks.iter().map(|block| residual(block).powi(2)).sum();
        let error = (squares / (BLOCKS - 2) as f64 / spread).sqrt();
        let hourly = |slope: f64| slope * 3600.0;
        Self {
            estimate: hourly(slope),
            least: hourly(slope - T_95 * error),
            most: hourly(slope + T_95 * error),
        }
    }

    /// True when the series is shown to grow by more than is tolerated.
    pub(crate) fn shows_a_leak(&self) -> bool {
        self.least >= TOLERATED
    }
}

fn mean(readings: &[Reading]) -> Reading {
    let count = readings.len() as f64;
    let (times, values) = readings
        .iter()
        .fold((0.0, 0.0), |(times, values), (time, value)| (times + time, values + value));
    (times / count, values / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::robustness::load::chance::Chance;

    const MIB: f64 = 1024.0 * 1024.0;

    /// 35 minutes of readings every 5 s around 50 MiB: noise that remembers (an allocator's strides), and a leak.
    fn series(seed: u64, leak_an_hour: f64) -> Vec<Reading> {
        let mut chance = Chance::new(seed);
        let mut stride = 0.0;
        let reading = |index: u32| {
            let time = f64::from(index) * 5.0;
            let noise = chance.below(2001) as f64 / 1000.0 - 1.0;
            stride = stride * 0.8 + noise * 0.05 * MIB;
            (time, 50.0 * MIB + stride + leak_an_hour * time / 3600.0)
        };
        (0..420).map(reading).collect()
    }

    #[test]
    fn flat_noise_shows_no_leak() {
        for seed in 0..200 {
            let slope = Slope::of_second_half(&series(seed, 0.0));
            assert!(!slope.shows_a_leak(), "seed {seed}: {slope:?}");
            assert!(slope.least < slope.estimate && slope.estimate < slope.most);
        }
    }

    #[test]
    fn five_mebibytes_an_hour_are_a_leak() {
        for seed in 0..200 {
            let slope = Slope::of_second_half(&series(seed, 5.0 * MIB));
            assert!(slope.shows_a_leak(), "seed {seed}: {slope:?}");
        }
    }

    #[test]
    fn the_interval_holds_the_true_slope_nearly_always() {
        let held = (0..400).filter(|seed| {
            let slope = Slope::of_second_half(&series(*seed, 3.0 * MIB));
            slope.least <= 3.0 * MIB && 3.0 * MIB <= slope.most
        });
        // 95 % of 400 are 380; strides make it a little less.
        assert!(held.count() >= 360);
    }

    #[test]
    fn growth_that_ends_before_the_second_half_is_warming_up() {
        let mut readings = series(1, 0.0);
        for (time, value) in &mut readings[..150] {
            *value -= 20.0 * MIB * (1.0 - *time / 750.0);
        }
        assert!(!Slope::of_second_half(&readings).shows_a_leak());
    }
}
