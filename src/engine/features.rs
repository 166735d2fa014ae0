//! Encoded images: cached, single-flight, pinned by the rows that attend to them, bounded in bytes.
//!
//! A flight is an image that is waiting to be encoded or being encoded; every task that wants it attaches to it.
//! `worker` owns this; nothing here knows a tensor or runs a tower.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ids::{FeatureKey, TaskId};
use crate::task::Pixels;

/// What a request for an image's features finds.
#[derive(Debug)]
pub(crate) enum Lookup<M> {
    /// They are here; pinned for the asker.
    Hit(M),
    /// Someone else's encoding is under way; the asker waits for it too.
    Joined,
    /// Nobody has them: a flight begins, with the asker as its first waiter.
    Miss,
}

#[derive(Debug)]
struct Entry<M> {
    memory: M,
    bytes: u64,
    pins: usize,
    expires: Instant,
    /// Place in the order of use.
    used: u64,
}

#[derive(Debug)]
struct Flight {
    pixels: Arc<Pixels>,
    waiters: Vec<TaskId>,
}

/// Encoded images and flights.
#[derive(Debug)]
pub(crate) struct Features<M> {
    entries: HashMap<FeatureKey, Entry<M>>,
    /// Entries by last use, the oldest first.
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
    /// Keeps up to `capacity` bytes for up to `ttl`; 0 keeps nothing that no row pins.
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

    /// Asks for an image's features on behalf of `task`.
    pub(crate) fn request(
        &mut self,
        key: FeatureKey,
        task: TaskId,
        pixels: &Arc<Pixels>,
        now: Instant,
    ) -> Lookup<M> {
        self.expire(now);
        if let Some(memory) = self.pin(key) {
            return Lookup::Hit(memory);
        }
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters.push(task);
            return Lookup::Joined;
        }
        let flight = Flight { pixels: Arc::clone(pixels), waiters: vec![task] };
        self.flights.insert(key, flight);
        Lookup::Miss
    }

    /// The pixels of a flight.
    pub(crate) fn pixels(&self, key: FeatureKey) -> Option<Arc<Pixels>> {
        self.flights.get(&key).map(|flight| Arc::clone(&flight.pixels))
    }

    /// A waiter leaves its flight, which ends with the last one.
    pub(crate) fn leave(&mut self, key: FeatureKey, task: TaskId) {
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waiters.retain(|&waiter| waiter != task);
            if flight.waiters.is_empty() {
                self.flights.remove(&key);
            }
        }
    }

    /// A flight has landed: its waiters, each with a pin on the features.
    pub(crate) fn land(
        &mut self,
        key: FeatureKey,
        memory: M,
        bytes: u64,
        now: Instant,
    ) -> Vec<TaskId> {
        let waiters = self.flights.remove(&key).map_or_else(Vec::new, |flight| flight.waiters);
        let (pins, used) = (waiters.len(), self.tick());
        self.bytes += bytes;
        self.pinned += if pins > 0 { bytes } else { 0 };
        self.order.insert(used, key);
        let entry = Entry { memory, bytes, pins, expires: now + self.ttl, used };
        if let Some(old) = self.entries.insert(key, entry) {
            self.order.remove(&old.used);
            self.bytes -= old.bytes;
        }
        self.evict();
        waiters
    }

    /// A flight has failed: its waiters. The error is kept for nobody else.
    pub(crate) fn fail(&mut self, key: FeatureKey) -> Vec<TaskId> {
        self.flights.remove(&key).map_or_else(Vec::new, |flight| flight.waiters)
    }

    /// One pin less.
    pub(crate) fn unpin(&mut self, key: FeatureKey) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.pins -= 1;
        if entry.pins == 0 {
            self.pinned -= entry.bytes;
            self.evict();
        }
    }

    /// Drops what is too old and not pinned.
    pub(crate) fn expire(&mut self, now: Instant) {
        let old = |entry: &Entry<M>| entry.pins == 0 && entry.expires <= now;
        let keys: Vec<FeatureKey> =
            self.entries.iter().filter(|(_, entry)| old(entry)).map(|(&key, _)| key).collect();
        for key in keys {
            self.drop_entry(key);
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that rows pin.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned
    }

    /// Entries pushed out by newer ones so far.
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
        Some(entry.memory.clone())
    }

    fn evict(&mut self) {
        while self.bytes > self.capacity {
            let unpinned = |key: &&FeatureKey| self.entries[*key].pins == 0;
            let Some(&key) = self.order.values().find(unpinned) else { return };
            self.drop_entry(key);
            // With the cache off nothing is "pushed out": it was never to be kept.
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
    use crate::task::{ImageId, Preprocessing, Resample, Scope, TowerId};

    const SIZE: Preprocessing = Preprocessing { width: 1, height: 1, resample: Resample::Bicubic };

    fn key(image: u8) -> FeatureKey {
        FeatureKey {
            tower: TowerId(0),
            scope: Scope::EVERYONE,
            image: ImageId::from_digest([image; 32]),
            preprocessing: SIZE,
        }
    }

    fn pixels() -> Arc<Pixels> {
        Arc::new(Pixels::new(1, 1, Box::new([0; 3])))
    }

    fn cache(capacity: u64) -> (Features<u8>, Instant) {
        (Features::new(capacity, Duration::from_secs(60)), Instant::now())
    }

    /// Encodes `image` for one task, which lets go of it at once.
    fn encode(features: &mut Features<u8>, image: u8, now: Instant) {
        assert!(matches!(features.request(key(image), TaskId(0), &pixels(), now), Lookup::Miss));
        assert_eq!(features.land(key(image), image, 10, now), [TaskId(0)]);
        features.unpin(key(image));
    }

    fn is_hit(features: &mut Features<u8>, image: u8, now: Instant) -> bool {
        let hit = matches!(features.request(key(image), TaskId(1), &pixels(), now), Lookup::Hit(_));
        if hit {
            features.unpin(key(image));
        } else {
            features.leave(key(image), TaskId(1));
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
        assert_eq!(features.land(key(1), 1, 10, now), [TaskId(1), TaskId(2)]);
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
        features.leave(key(1), TaskId(1));
        assert!(features.pixels(key(1)).is_some());
        assert_eq!(features.fail(key(1)), [TaskId(2)]);
        assert!(features.pixels(key(1)).is_none());
        assert!(matches!(features.request(key(1), TaskId(3), &pixels(), now), Lookup::Miss));
        features.leave(key(1), TaskId(3));
        assert!(features.pixels(key(1)).is_none());
    }
}
