//! What a call and its tasks hold; given back when they are dropped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Ledger, Taken};
use crate::engine::EngineError;
use crate::engine::ids::CallId;
use crate::engine::sync::{Mutex, MutexGuard};

/// A call's room: what it has reserved and not yet submitted, and its bytes. Shared by the call's
/// [`Admission`](crate::engine::Admission) and the claims of its tasks; the bytes go back with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: Arc<Ledger>,
    call: CallId,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// Reserved in all, to know what a second reservation adds.
    reserved: Taken,
    /// Reserved and not submitted.
    rest: Taken,
}

/// The rows and images of one submitted task; the rows go back when the task is over.
#[derive(Debug)]
pub(crate) struct Claim {
    room: Room,
    rows: usize,
    /// Not looked up yet.
    images: usize,
    /// To be encoded for this task.
    encodings: usize,
}

impl Room {
    pub(super) fn new(ledger: Arc<Ledger>, call: CallId) -> Self {
        let held = Mutex::new(Held { reserved: Taken::default(), rest: Taken::default() });
        Self(Arc::new(Inner { ledger, call, held }))
    }

    pub(crate) fn call(&self) -> CallId {
        self.0.call
    }

    /// Raises the reservation to `rows` and `images` in all, with `left` until the deadline.
    pub(crate) fn reserve(
        &self,
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<(), EngineError> {
        let mut held = self.held();
        let more = self.0.ledger.raise((self.0.call, held.reserved), rows, images, left)?;
        held.reserved = held.reserved.plus(more);
        held.rest = held.rest.plus(more);
        Ok(())
    }

    /// Refuses a call that would wait so long elsewhere, with `left` until the deadline.
    pub(crate) fn check_wait(&self, wait: Duration, left: Duration) -> Result<(), EngineError> {
        self.0.ledger.check_time(wait, Duration::ZERO, left)
    }

    /// Takes `bytes` more.
    pub(crate) fn reserve_bytes(&self, bytes: u64) -> Result<(), EngineError> {
        let mut held = self.held();
        self.0.ledger.raise_bytes(self.0.call, bytes)?;
        held.rest.bytes += bytes;
        Ok(())
    }

    /// Moves `rows` and up to `images` from the reservation to a task.
    ///
    /// # Errors
    /// `TooManyRows` when the call has not reserved so many.
    pub(crate) fn claim(&self, rows: usize, images: usize) -> Result<Claim, EngineError> {
        let mut held = self.held();
        if rows > held.rest.rows {
            return Err(EngineError::TooManyRows { rows, capacity: held.rest.rows });
        }
        let images = images.min(held.rest.images);
        held.rest.rows -= rows;
        held.rest.images -= images;
        drop(held);
        Ok(Claim { room: self.clone(), rows, images, encodings: 0 })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.ledger.end_call(self.call, held.rest);
    }
}

impl Claim {
    /// The call's number.
    pub(crate) fn call(&self) -> CallId {
        self.room.call()
    }

    /// One of the task's images has been looked up, and is cached or under way for another task: it costs nothing.
    /// Should that other task leave, its encoding goes on uncounted.
    pub(crate) fn image_found(&mut self) {
        if self.images > 0 {
            self.images -= 1;
            let image = Taken { images: 1, ..Taken::default() };
            self.room.0.ledger.give_back(self.room.0.call, image);
        }
    }

    /// One of the task's images has been looked up in vain: it is encoded for this task.
    pub(crate) fn image_missed(&mut self) {
        if self.images > 0 {
            self.image_found();
            self.encodings += 1;
            let encoding = Taken { encodings: 1, ..Taken::default() };
            self.room.0.ledger.take(self.room.0.call, encoding);
        }
    }

    /// An image that was encoded for this task is done.
    pub(crate) fn image_encoded(&mut self) {
        if self.encodings > 0 {
            self.encodings -= 1;
            let encoding = Taken { encodings: 1, ..Taken::default() };
            self.room.0.ledger.give_back(self.room.0.call, encoding);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Self { rows, images, encodings, .. } = *self;
        let taken = Taken { rows, images, encodings, bytes: 0 };
        self.room.0.ledger.give_back(self.room.0.call, taken);
    }
}
