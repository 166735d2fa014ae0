//! Single flight: identical images in progress are decoded once, and every waiter gets the result.
//!
//! A flight is one decode and its waiters. The first request for an image opens its flight, but the decode job owns the
//! flight. So if the first waiter leaves, the others still get the result. If all waiters leave before the work starts,
//! the work is dropped.

use super::{ImagesError, Key, Prepared, lock};
use crate::fairness::CallId;
use crate::task::PreparedImage;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::Notify;

/// What a flight and its waiters share. Unlike a `watch` channel, `Notify` wakes the waiters in the order in which they
/// began to wait, so that a simulation can be repeated.
#[derive(Debug, Default)]
struct Landing {
    waiters: AtomicUsize,
    queued: Mutex<Queued>,
    result: OnceLock<Result<Prepared, ImagesError>>,
    is_set: Notify,
}

/// The decode of a flight in the queue of the decoding threads.
#[derive(Debug, Default)]
struct Queued {
    /// Number of the job; `None` until it is in the queue.
    job: Option<u64>,
    /// Calls that joined the flight before.
    joined: Vec<CallId>,
}

impl Landing {
    /// Hands the result to the waiters. Only the first result counts.
    fn set(&self, result: Result<Prepared, ImagesError>) {
        if self.result.set(result).is_ok() {
            self.is_set.notify_waiters();
        }
    }
}

/// Flights in progress, at most one per key.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    open: Mutex<HashMap<Key, Arc<Landing>>>,
}

/// The job's side of a flight. If it is dropped without a result, the waiters get `Overloaded`.
#[derive(Debug)]
pub(super) struct Flight {
    owner: Arc<InFlight>,
    key: Key,
    landing: Arc<Landing>,
}

/// A waiter's side of a flight. A waiter leaves the flight by dropping it.
#[derive(Debug)]
pub(super) struct Waiter(Arc<Landing>);

/// Outcome of a request for an image.
#[derive(Debug)]
pub(super) enum JoinOrStart {
    /// The pixels are in the cache.
    Cached(PreparedImage),
    /// A flight for the image was open already. The waiter gets the result of that flight.
    Joined(Waiter),
    /// A new flight has been opened. Its work is not queued yet: the caller must queue a job with this flight, or
    /// complete the flight with an error.
    Started(Waiter, Flight),
}

impl InFlight {
    /// Returns the image if it is cached, joins its flight if there is one, and otherwise opens a flight. One lock
    /// covers all three steps, so no image is decoded twice.
    pub(super) fn join_or_start(
        self: &Arc<Self>,
        key: Key,
        cached: impl FnOnce() -> Option<PreparedImage>,
    ) -> JoinOrStart {
        let mut open = lock(&self.open);
        if let Some(image) = cached() {
            return JoinOrStart::Cached(image);
        }
        if let Some(landing) = open.get(&key) {
            return JoinOrStart::Joined(Waiter::new(landing));
        }
        let landing = Arc::default();
        open.insert(key, Arc::clone(&landing));
        let waiter = Waiter::new(&landing);
        JoinOrStart::Started(waiter, Flight { owner: Arc::clone(self), key, landing })
    }

    /// Like [`join_or_start`](Self::join_or_start), but for an image given by its id. Without the image's bytes, no
    /// flight can be opened, so the method returns `None` if the image is neither cached nor in flight.
    pub(super) fn join(
        &self,
        key: &Key,
        cached: impl FnOnce() -> Option<PreparedImage>,
    ) -> Option<JoinOrStart> {
        let open = lock(&self.open);
        if let Some(image) = cached() {
            return Some(JoinOrStart::Cached(image));
        }
        open.get(key).map(|landing| JoinOrStart::Joined(Waiter::new(landing)))
    }
}

impl Flight {
    /// True while there are waiters. Unlike [`is_wanted`](Self::is_wanted), this method changes nothing and takes no
    /// lock.
    pub(super) fn has_waiters(&self) -> bool {
        self.landing.waiters.load(Ordering::SeqCst) > 0
    }

    /// True while there are waiters. If there are none, closes the flight, so that nobody can join it any more.
    pub(super) fn is_wanted(&self) -> bool {
        let mut open = lock(&self.owner.open);
        let wanted = self.has_waiters();
        if !wanted {
            self.close(&mut open);
        }
        wanted
    }

    /// Completes the flight with `result`. The caller must put a success into the cache first; otherwise a request that
    /// arrives in between would find neither the flight nor the pixels.
    pub(super) fn complete(self, result: Result<Prepared, ImagesError>) {
        self.close(&mut lock(&self.owner.open));
        self.landing.set(result);
    }

    fn close(&self, open: &mut HashMap<Key, Arc<Landing>>) {
        if open.get(&self.key).is_some_and(|landing| Arc::ptr_eq(landing, &self.landing)) {
            open.remove(&self.key);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.close(&mut lock(&self.owner.open));
        self.landing.set(Err(ImagesError::Overloaded));
    }
}

impl Waiter {
    /// Notes that the flight's job is in the queue. Returns the calls that have joined the flight before.
    pub(super) fn set_job(&self, job: u64) -> Vec<CallId> {
        let mut queued = lock(&self.0.queued);
        queued.job = Some(job);
        std::mem::take(&mut queued.joined)
    }

    /// Notes that a call has joined the flight. Returns the flight's job if it is already in the queue.
    pub(super) fn join(&self, call: CallId) -> Option<u64> {
        let mut queued = lock(&self.0.queued);
        if queued.job.is_none() {
            queued.joined.push(call);
        }
        queued.job
    }

    fn new(landing: &Arc<Landing>) -> Self {
        landing.waiters.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(landing))
    }

    /// Waits for the flight's result. Returns `Overloaded` if the flight was dropped without a result.
    pub(super) async fn wait(self) -> Result<Prepared, ImagesError> {
        loop {
            let mut is_set = pin!(self.0.is_set.notified());
            // Listen first and look afterwards, so that no result falls between the two.
            is_set.as_mut().enable();
            if let Some(result) = self.0.result.get() {
                return result.clone();
            }
            is_set.await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}
