//! [`Chance`]: the random choices of a simulation. Each part of a simulation has a stream of its own, so that a change of
//! one client does not change what the others do.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random choices that depends on the seed and the number of the stream alone.
pub(super) struct Chance(ChaCha8Rng);

impl Chance {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// Returns a number below `end`, which must not be 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }

    /// Returns a number from `first` to `last`.
    pub(super) fn within(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// Returns true in `percent` of a hundred cases.
    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Returns one of the values.
    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Returns a time from `first` to `last` milliseconds.
    pub(super) fn milliseconds(&mut self, first: usize, last: usize) -> Duration {
        Duration::from_millis(self.within(first, last) as u64)
    }

    /// Sleeps for a time from `first` to `last` milliseconds. In one of four cases also lets all other tasks that are
    /// ready run first, once or twice, so that tasks with the same wake-up time run in varying orders.
    pub(super) async fn pause(&mut self, first: usize, last: usize) {
        tokio::time::sleep(self.milliseconds(first, last)).await;
        if self.percent(25) {
            for _ in 0..self.within(1, 2) {
                tokio::task::yield_now().await;
            }
        }
    }
}
