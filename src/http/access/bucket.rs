//! Rate limiting with one token bucket per caller, in bounded memory.
//!
//! This file replaces the crate `governor`, which lacks two things. The first is a way to check a bucket without taking
//! a token. A request without a key needs this: it does not guess a key, so it takes no token, but it must wait if its
//! address has sent too many wrong keys. The second is a fixed limit on the number of callers, which holds however many
//! addresses a client pretends to have. The algorithm is the same as that of `governor` (GCRA): the state of a caller
//! is one instant, the time at which its bucket will be full again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of callers with their own bucket. These buckets take about 5 MiB. All further callers share one
/// bucket.
const MAX_CALLERS: usize = 65_536;
/// Minimum time between two scans that remove callers whose buckets are full.
const PURGE_PAUSE: Duration = Duration::from_secs(1);

/// Rate at which buckets fill, stored as the time in which one token is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(Duration);

/// The buckets of all callers. All buckets have the same rate and the same size.
pub(crate) struct Buckets<C> {
    rate: Rate,
    burst: u32,
    max_callers: usize,
    state: Mutex<CallerBuckets<C>>,
}

/// The state of a caller's bucket, as the `RateLimit` header fields report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Number of tokens in a full bucket.
    pub(crate) quota: u32,
    /// Time in which an empty bucket becomes full.
    pub(crate) window: Duration,
    /// Number of whole tokens that are left now.
    pub(crate) left: u32,
    /// Time until the bucket is full.
    pub(crate) full_after: Duration,
}

struct CallerBuckets<C> {
    /// Time at which each caller's bucket will be full. A caller that is not in the map has a full bucket.
    callers: HashMap<C, Instant>,
    /// Time at which the bucket that all further callers share will be full.
    others: Option<Instant>,
    /// Time of the last scan for full buckets.
    purged: Option<Instant>,
}

impl Rate {
    /// Returns the rate of `count` tokens per second; `None` for 0, which means no limit.
    pub(crate) fn per_second(count: u32) -> Option<Self> {
        (count > 0).then(|| Self(Duration::from_secs(1) / count))
    }

    /// Returns the rate of `count` tokens per minute; `None` for 0, which means no limit.
    pub(crate) fn per_minute(count: u32) -> Option<Self> {
        (count > 0).then(|| Self(Duration::from_secs(60) / count))
    }
}

impl<C: Hash + Eq> Buckets<C> {
    /// Creates buckets of `burst` tokens, all of them full.
    pub(crate) fn new(rate: Rate, burst: u32) -> Self {
        Self::bounded(rate, burst, MAX_CALLERS)
    }

    fn bounded(rate: Rate, burst: u32, max_callers: usize) -> Self {
        let state = CallerBuckets { callers: HashMap::new(), others: None, purged: None };
        Self { rate, burst, max_callers, state: Mutex::new(state) }
    }

    /// Takes a token from the caller's bucket.
    ///
    /// # Errors
    /// The time to wait for the next token, if the bucket has none.
    pub(crate) fn take(&self, caller: C, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let has_place = state.ensure_place(&caller, self.max_callers, now);
        let next = state.full_at(has_place, &caller, now) + self.rate.0;
        if let Some(wait) = self.time_to_next_token(next, now) {
            return Err(wait);
        }
        if has_place {
            state.callers.insert(caller, next);
        } else {
            state.others = Some(next);
        }
        Ok(())
    }

    /// Returns the time to wait for the next token; `None` if there is a token now. Takes no token.
    pub(crate) fn wait(&self, caller: &C, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let has_place = state.ensure_place(caller, self.max_callers, now);
        self.time_to_next_token(state.full_at(has_place, caller, now) + self.rate.0, now)
    }

    /// Returns the state of the caller's bucket. Takes no token.
    pub(crate) fn allowance(&self, caller: &C, now: Instant) -> Allowance {
        let mut state = self.lock();
        let has_place = state.ensure_place(caller, self.max_callers, now);
        let full_after = state.full_at(has_place, caller, now).saturating_duration_since(now);
        let window = self.rate.0 * self.burst;
        let left = window.saturating_sub(full_after).as_nanos() / self.rate.0.as_nanos();
        Allowance { quota: self.burst, window, left: left as u32, full_after }
    }

    /// Returns how long a caller must wait for its next token; `None` if its bucket has one now. `full_at` is the time
    /// at which the bucket would be full if the caller took that token now.
    fn time_to_next_token(&self, full_at: Instant, now: Instant) -> Option<Duration> {
        let missing = full_at.saturating_duration_since(now);
        let wait = missing.saturating_sub(self.rate.0 * self.burst);
        (!wait.is_zero()).then_some(wait)
    }

    fn lock(&self) -> MutexGuard<'_, CallerBuckets<C>> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Hash + Eq> CallerBuckets<C> {
    /// True if the caller has its own bucket, or if there is space for one. Purges full buckets if that is needed to
    /// make space.
    fn ensure_place(&mut self, caller: &C, max_callers: usize, now: Instant) -> bool {
        if self.callers.len() < max_callers || self.callers.contains_key(caller) {
            return true;
        }
        self.purge(now);
        self.callers.len() < max_callers
    }

    /// Returns the time at which the bucket that the caller uses (its own or the shared one) will be full; `now` if it
    /// is already full.
    fn full_at(&self, has_place: bool, caller: &C, now: Instant) -> Instant {
        let own = || self.callers.get(caller);
        let full_at = if has_place { own() } else { self.others.as_ref() };
        full_at.map_or(now, |full_at| now.max(*full_at))
    }

    /// Forgets callers whose buckets are full. This loses no information, because a caller that is not in the map
    /// counts as having a full bucket. A scan visits all callers, so it runs at most once per [`PURGE_PAUSE`].
    fn purge(&mut self, now: Instant) {
        let due = |at: Instant| now.saturating_duration_since(at) >= PURGE_PAUSE;
        if self.purged.is_none_or(due) {
            self.purged = Some(now);
            self.callers.retain(|_, full_at| *full_at > now);
            self.callers.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allowance_counts_whole_tokens_and_takes_none() {
        let buckets = Buckets::new(Rate::per_second(4).unwrap(), 8);
        let start = Instant::now();
        let full = Allowance {
            quota: 8,
            window: Duration::from_secs(2),
            left: 8,
            full_after: Duration::ZERO,
        };
        assert_eq!(buckets.allowance(&1, start), full);
        for _ in 0..3 {
            buckets.take(1, start).unwrap();
        }
        let taken = Allowance { left: 5, full_after: Duration::from_millis(750), ..full };
        assert_eq!(buckets.allowance(&1, start), taken);
        assert_eq!(buckets.allowance(&2, start), full);
        let later = start + Duration::from_millis(300);
        let refilled = Allowance { left: 6, full_after: Duration::from_millis(450), ..full };
        assert_eq!(buckets.allowance(&1, later), refilled);
        while buckets.take(1, later).is_ok() {}
        assert_eq!(buckets.allowance(&1, later).left, 0);
    }

    use super::*;

    fn second(count: f64) -> Duration {
        Duration::from_secs_f64(count)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let buckets = Buckets::new(Rate::per_second(2).unwrap(), 3);
        let start = Instant::now();
        let taken: Vec<_> = (0..5).map(|_| buckets.take('a', start)).collect();
        let wait = Err(second(0.5));
        assert_eq!(taken, [Ok(()), Ok(()), Ok(()), wait, wait]);
        assert_eq!(buckets.take('a', start + second(0.4)), Err(second(0.1)));
        assert_eq!(buckets.take('a', start + second(0.5)), Ok(()));
        assert_eq!(buckets.take('a', start + second(0.5)), wait);
        // While the caller is idle, its bucket fills, but only up to `burst` tokens.
        let taken: Vec<_> = (0..4).map(|_| buckets.take('a', start + second(60.0))).collect();
        assert_eq!(taken, [Ok(()), Ok(()), Ok(()), wait]);
    }

    #[test]
    fn callers_have_buckets_of_their_own() {
        let buckets = Buckets::new(Rate::per_second(1).unwrap(), 1);
        let now = Instant::now();
        assert_eq!(buckets.take('a', now), Ok(()));
        assert!(buckets.take('a', now).is_err());
        assert_eq!(buckets.take('b', now), Ok(()));
    }

    #[test]
    fn looking_takes_nothing() {
        let buckets = Buckets::new(Rate::per_minute(60).unwrap(), 1);
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(buckets.wait(&'a', now), None);
        }
        assert_eq!(buckets.take('a', now), Ok(()));
        assert_eq!(buckets.wait(&'a', now), Some(second(1.0)));
        assert_eq!(buckets.wait(&'a', now + second(1.0)), None);
    }

    #[test]
    fn zero_is_no_rate() {
        assert_eq!((Rate::per_second(0), Rate::per_minute(0)), (None, None));
    }

    #[test]
    fn the_number_of_callers_is_bounded_and_those_beyond_share_a_bucket() {
        let buckets = Buckets::bounded(Rate::per_second(1).unwrap(), 2, 100);
        let now = Instant::now();
        let passed = (0..10_000).filter(|caller| buckets.take(*caller, now).is_ok()).count();
        assert_eq!(passed, 100 + 2);
        assert_eq!(buckets.lock().callers.len(), 100);
        // A caller that has a bucket of its own keeps it.
        assert_eq!(buckets.take(5, now), Ok(()));
        assert!(buckets.take(5, now).is_err());
        // Once the buckets are full again, their callers are forgotten.
        let later = now + second(10.0);
        assert_eq!(buckets.take(20_000, later), Ok(()));
        assert_eq!(buckets.lock().callers.len(), 1);
    }
}
