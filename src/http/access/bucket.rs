//! Token buckets, one for each caller, in bounded memory.
//!
//! Our own forty lines instead of `governor`, because two things are needed that it does not offer: looking without
//! taking (a request without a key is no guess, but waits where too many were made), and a bound on the number of
//! callers that holds at every moment, whoever they pretend to be. The arithmetic is the same (GCRA): a caller is one
//! instant, that at which its bucket will be full again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Callers that are told apart; about 4 MiB. Those beyond share one bucket.
const MAX_CALLERS: usize = 65_536;
/// Between two searches for callers that can be forgotten.
const PURGE_PAUSE: Duration = Duration::from_secs(1);

/// How fast buckets fill: the time that one token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(Duration);

/// One bucket for each caller.
pub(crate) struct Buckets<C> {
    rate: Rate,
    burst: u32,
    max_callers: usize,
    state: Mutex<State<C>>,
}

/// A caller's bucket, as clients are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Tokens of a full bucket.
    pub(crate) quota: u32,
    /// How long an empty one takes to be full.
    pub(crate) window: Duration,
    /// Whole tokens left.
    pub(crate) left: u32,
    /// How long until it is full.
    pub(crate) full_after: Duration,
}

struct State<C> {
    /// When each bucket is full; a caller that is not here has a full one.
    callers: HashMap<C, Instant>,
    /// When the bucket of everyone who found no place is full.
    others: Option<Instant>,
    /// When full buckets were last looked for.
    purged: Option<Instant>,
}

impl Rate {
    /// So many a second; `None` for 0, which means no limit.
    pub(crate) fn per_second(count: u32) -> Option<Self> {
        (count > 0).then(|| Self(Duration::from_secs(1) / count))
    }

    /// So many a minute; `None` for 0, which means no limit.
    pub(crate) fn per_minute(count: u32) -> Option<Self> {
        (count > 0).then(|| Self(Duration::from_secs(60) / count))
    }
}

impl<C: Hash + Eq> Buckets<C> {
    /// Full buckets of `burst` tokens.
    pub(crate) fn new(rate: Rate, burst: u32) -> Self {
        Self::bounded(rate, burst, MAX_CALLERS)
    }

    fn bounded(rate: Rate, burst: u32, max_callers: usize) -> Self {
        let state = State { callers: HashMap::new(), others: None, purged: None };
        Self { rate, burst, max_callers, state: Mutex::new(state) }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long to wait for one.
    pub(crate) fn take(&self, caller: C, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let has_place = state.find_place(&caller, self.max_callers, now);
        let next = state.full_at(has_place, &caller, now) + self.rate.0;
        if let Some(wait) = self.beyond_burst(next, now) {
            return Err(wait);
        }
        if has_place {
            state.callers.insert(caller, next);
        } else {
            state.others = Some(next);
        }
        Ok(())
    }

    /// How long to wait for a token, none of which is taken; `None` when there is one.
    pub(crate) fn wait(&self, caller: &C, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let has_place = state.find_place(caller, self.max_callers, now);
        self.beyond_burst(state.full_at(has_place, caller, now) + self.rate.0, now)
    }

    /// What the caller has left, without taking of it.
    pub(crate) fn allowance(&self, caller: &C, now: Instant) -> Allowance {
        let mut state = self.lock();
        let has_place = state.find_place(caller, self.max_callers, now);
        let full_after = state.full_at(has_place, caller, now).saturating_duration_since(now);
        let window = self.rate.0 * self.burst;
        let left = window.saturating_sub(full_after).as_nanos() / self.rate.0.as_nanos();
        Allowance { quota: self.burst, window, left: left as u32, full_after }
    }

    /// By how much a bucket that is full at `full_at` would have less than nothing now.
    fn beyond_burst(&self, full_at: Instant, now: Instant) -> Option<Duration> {
        let missing = full_at.saturating_duration_since(now);
        let wait = missing.saturating_sub(self.rate.0 * self.burst);
        (!wait.is_zero()).then_some(wait)
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        // Nothing panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Hash + Eq> State<C> {
    /// Whether the caller has a bucket of its own, or could have one.
    fn find_place(&mut self, caller: &C, max_callers: usize, now: Instant) -> bool {
        if self.callers.len() < max_callers || self.callers.contains_key(caller) {
            return true;
        }
        self.purge(now);
        self.callers.len() < max_callers
    }

    /// When the caller's bucket is full, at the earliest now.
    fn full_at(&self, has_place: bool, caller: &C, now: Instant) -> Instant {
        let own = || self.callers.get(caller);
        let full_at = if has_place { own() } else { self.others.as_ref() };
        full_at.map_or(now, |full_at| now.max(*full_at))
    }

    /// Forgets those whose buckets are full: nothing is lost with them. Not at every call, since it looks at all.
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
        // Idling fills the bucket, and no further.
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
        // Whoever has a place keeps his own bucket.
        assert_eq!(buckets.take(5, now), Ok(()));
        assert!(buckets.take(5, now).is_err());
        // Time frees the places.
        let later = now + second(10.0);
        assert_eq!(buckets.take(20_000, later), Ok(()));
        assert_eq!(buckets.lock().callers.len(), 1);
    }
}
