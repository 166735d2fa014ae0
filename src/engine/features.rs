//! The feature cache. It keeps the features of encoded images, up to a limit in bytes, and pins those that rows attend
//! to. If several tasks want the same image, it is encoded only once (single flight).
//!
//! A flight is an image that waits to be encoded or is being encoded. Every task that wants the image joins its flight
//! as a waiter. `worker` owns this cache. Nothing here handles tensors or runs a vision tower.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::{FeatureKey, TaskId};
use crate::task::Pixels;

/// Result of looking up an image's features.
#[derive(Debug)]
pub(crate) enum Lookup<M> {
    /// Cache hit. The entry is now pinned for the task that asked.
    Hit(M),
    /// Another task's encoding is in flight. The task that asked is now one of its waiters.
    Joined,
    /// Cache miss. A flight starts, with the task that asked as its first waiter.
    Miss,
}

#[derive(Debug)]
struct CachedFeatures<M> {
    states: M,
    bytes: u64,
    pins: usize,
    expires: Instant,
    /// Value of `Features::ticks` at the last use; the entry's key in `Features::order`.
    used: u64,
}

#[derive(Debug)]
struct Flight {
    pixels: Arc<Pixels>,
    waiters: Vec<TaskId>,
}

/// Cached features and images in flight.
#[derive(Debug)]
pub(crate) struct Features<M> {
    entries: HashMap<FeatureKey, CachedFeatures<M>>,
    /// Entries by the tick of their last use, least recently used first.
    order: BTreeMap<u64, FeatureKey>,
    flights: HashMap<FeatureKey, Flight>,
    capacity: u64,
    ttl: Duration,
    bytes: u64,
    pinned: u64,
    evictions: u64,
    ticks: u64,
}

impl<M: Clone> Features<M> {
    /// Creates a cache of up to `capacity` bytes that keeps each entry for up to `ttl`. With a capacity of 0 only
    /// pinned entries are kept.
    pub(crate) fn new(capacity: u64, ttl: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            flights: HashMap::new(),
            capacity,
            ttl,
            bytes: 0,
            pinned: 0,
            evictions: 0,
            ticks: 0,
        }
    }

    /// Looks up an image's features on behalf of `task`, and starts or joins a flight if they are not cached.
    pub(crate) fn request(
        &mut self,
        key: FeatureKey,
        task: TaskId,
        pixels: &Arc<Pixels>,
        now: Instant,
    ) -> Lookup<M> {
        self.expire(now);
        if let Some(states) = self.pin(key) {
            return Lookup::Hit(states);
        }
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters.push(task);
            return Lookup::Joined;
        }
        let flight = Flight { pixels: Arc::clone(pixels), waiters: vec![task] };
        self.flights.insert(key, flight);
        Lookup::Miss
    }

    /// Returns the pixels of the image in flight under `key`, if there is one.
    pub(crate) fn pixels(&self, key: FeatureKey) -> Option<Arc<Pixels>> {
        self.flights.get(&key).map(|flight| Arc::clone(&flight.pixels))
    }

    /// Removes a waiter from its flight. The flight ends when its last waiter is removed.
    pub(crate) fn withdraw(&mut self, key: FeatureKey, task: TaskId) {
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters.retain(|&waiter| waiter != task);
            if flight.waiters.is_empty() {
                self.flights.remove(&key);
            }
        }
    }

    /// Ends a flight whose image has been encoded: caches the features, and returns the waiters. The new entry is
    /// pinned once for each waiter.
    pub(crate) fn complete(
        &mut self,
        key: FeatureKey,
        states: M,
        bytes: u64,
        now: Instant,
    ) -> Vec<TaskId> {
        let waiters = self.flights.remove(&key).map_or_else(Vec::new, |flight| flight.waiters);
        let (pins, used) = (waiters.len(), self.tick());
        self.bytes += bytes;
        self.pinned += if pins > 0 { bytes } else { 0 };
        self.order.insert(used, key);
        let entry = CachedFeatures { states, bytes, pins, expires: now + self.ttl, used };
        if let Some(old) = self.entries.insert(key, entry) {
            self.order.remove(&old.used);
            self.bytes -= old.bytes;
        }
        self.evict();
        waiters
    }

    /// Ends a flight whose encoding failed, and returns its waiters. The error is not cached: the next request starts a
    /// new flight.
    pub(crate) fn fail(&mut self, key: FeatureKey) -> Vec<TaskId> {
        self.flights.remove(&key).map_or_else(Vec::new, |flight| flight.waiters)
    }

    /// Removes one pin; an entry without pins may be evicted.
    pub(crate) fn unpin(&mut self, key: FeatureKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.pins -= 1;
        if entry.pins == 0 {
            self.pinned -= entry.bytes;
            self.evict();
        }
    }

    /// Drops entries that are past their time to live and not pinned.
    pub(crate) fn expire(&mut self, now: Instant) {
        let old = |entry: &CachedFeatures<M>| entry.pins == 0 && entry.expires <= now;
        let keys: Vec<FeatureKey> =
            self.entries.iter().filter(|(_, entry)| old(entry)).map(|(&key, _)| key).collect();
        for key in keys {
            self.drop_entry(key);
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the total size in bytes of the pinned entries.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned
    }

    /// Returns the number of entries evicted so far to make room for newer ones.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions
    }

    fn pin(&mut self, key: FeatureKey) -> Option<M> {
        let used = self.tick();
        let entry = self.entries.get_mut(&key)?;
        self.order.remove(&entry.used);
        self.order.insert(used, key);
        entry.used = used;
        entry.pins += 1;
        if entry.pins == 1 {
            self.pinned += entry.bytes;
        }
        Some(entry.states.clone())
    }

    fn evict(&mut self) {
        while self.bytes > self.capacity {
            let unpinned = |key: &&FeatureKey| self.entries[*key].pins == 0;
            let Some(&key) = self.order.values().find(unpinned) else { return };
            self.drop_entry(key);
            // If the cache is disabled, the removal does not count as an eviction, because the entry was never meant to
            // be kept.
            self.evictions += u64::from(self.capacity > 0);
        }
    }

    fn drop_entry(&mut self, key: FeatureKey) {
        if let Some(entry) = self.entries.remove(&key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ImageId, Preprocessing, Resample, Scope, TowerId, VisionOutput};

    const SIZE: Preprocessing = Preprocessing { width: 1, height: 1, resample: Resample::Bicubic };

    fn key(image: u8) -> FeatureKey {
        FeatureKey {
            output: VisionOutput::last(TowerId(0)),
            scope: Scope::EVERYONE,
            image: ImageId::from_digest([image; 32]),
            preprocessing: SIZE,
        }
    }

    fn pixels() -> Arc<Pixels> {
        Arc::new(Pixels::new(1, 1, vec![0; 3]))
    }

    fn cache(capacity: u64) -> (Features<u8>, Instant) {
        (Features::new(capacity, Duration::from_secs(60)), Instant::now())
    }

    /// Encodes `image` for one task, which releases its pin at once.
    fn encode(features: &mut Features<u8>, image: u8, now: Instant) {
        assert!(matches!(features.request(key(image), TaskId(0), &pixels(), now), Lookup::Miss));
        assert_eq!(features.complete(key(image), image, 10, now), [TaskId(0)]);
        features.unpin(key(image));
    }

    fn is_hit(features: &mut Features<u8>, image: u8, now: Instant) -> bool {
        let hit = matches!(features.request(key(image), TaskId(1), &pixels(), now), Lookup::Hit(_));
        if hit {
            features.unpin(key(image));
        } else {
            features.withdraw(key(image), TaskId(1));
        }
        hit
    }

    #[test]
    fn the_least_recently_used_image_makes_room() {
        let (mut features, now) = cache(25);
        encode(&mut features, 1, now);
        encode(&mut features, 2, now);
        assert!(is_hit(&mut features, 1, now));
        encode(&mut features, 3, now);
        assert!(is_hit(&mut features, 1, now) && is_hit(&mut features, 3, now));
        assert!(!is_hit(&mut features, 2, now));
        assert_eq!((features.bytes(), features.pinned_bytes(), features.evictions()), (20, 0, 1));
    }

    #[test]
    fn what_one_key_had_encoded_is_no_hit_for_another() {
        let (mut features, now) = cache(100);
        encode(&mut features, 1, now);
        let others = FeatureKey { scope: Scope(7), ..key(1) };
        assert!(matches!(features.request(others, TaskId(1), &pixels(), now), Lookup::Miss));
        assert!(is_hit(&mut features, 1, now));
    }

    #[test]
    fn a_pinned_image_outlives_capacity_and_age() {
        let (mut features, now) = cache(0);
        assert!(matches!(features.request(key(1), TaskId(1), &pixels(), now), Lookup::Miss));
        assert!(matches!(features.request(key(1), TaskId(2), &pixels(), now), Lookup::Joined));
        assert_eq!(features.complete(key(1), 1, 10, now), [TaskId(1), TaskId(2)]);
        features.unpin(key(1));
        assert!(is_hit(&mut features, 1, now + Duration::from_secs(61)));
        features.unpin(key(1));
        assert_eq!((features.bytes(), features.pinned_bytes()), (0, 0));
        assert!(!is_hit(&mut features, 1, now));
    }

    #[test]
    fn an_image_is_forgotten_when_its_time_is_over() {
        let (mut features, now) = cache(100);
        encode(&mut features, 1, now);
        assert!(is_hit(&mut features, 1, now + Duration::from_secs(59)));
        assert!(!is_hit(&mut features, 1, now + Duration::from_secs(60)));
    }

    #[test]
    fn a_flight_lives_while_any_waiter_does_and_its_error_is_not_kept() {
        let (mut features, now) = cache(100);
        features.request(key(1), TaskId(1), &pixels(), now);
        features.request(key(1), TaskId(2), &pixels(), now);
        features.withdraw(key(1), TaskId(1));
        assert!(features.pixels(key(1)).is_some());
        assert_eq!(features.fail(key(1)), [TaskId(2)]);
        assert!(features.pixels(key(1)).is_none());
        assert!(matches!(features.request(key(1), TaskId(3), &pixels(), now), Lookup::Miss));
        features.withdraw(key(1), TaskId(3));
        assert!(features.pixels(key(1)).is_none());
    }
}
