//! Reservations of a call and of its tasks; guards that release capacity when dropped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{AdmissionController, Usage};
use crate::engine::EngineError;
use crate::engine::ids::CallId;
use crate::engine::sync::{Mutex, MutexGuard};

/// A call's reservation: rows and images not yet submitted, and all its bytes. The call's
/// [`Admission`](crate::engine::Admission) and the claims of its tasks share it; its bytes are released with the last
/// of them.
#[derive(Debug, Clone)]
pub(crate) struct CallReservation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    admission: Arc<AdmissionController>,
    call: CallId,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// All that was ever reserved, to compute what a further reservation adds.
    reserved: Usage,
    /// Reserved and not yet submitted.
    rest: Usage,
}

/// Reservation of one submitted task: its rows and images. Its rows are released when the task ends.
#[derive(Debug)]
pub(crate) struct TaskReservation {
    room: CallReservation,
    rows: usize,
    /// Images not yet looked up in the feature cache.
    images: usize,
    /// Cache misses: images being encoded for this task.
    encodings: usize,
}

impl CallReservation {
    pub(super) fn new(admission: Arc<AdmissionController>, call: CallId) -> Self {
        let held = Mutex::new(Held { reserved: Usage::default(), rest: Usage::default() });
        Self(Arc::new(Inner { admission, call, held }))
    }

    pub(crate) fn call(&self) -> CallId {
        self.0.call
    }

    /// Raises the reservation to `rows` and `images` in all. `left` is the time until the deadline.
    pub(crate) fn reserve(
        &self,
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<(), EngineError> {
        let mut held = self.held();
        let more =
            self.0.admission.reserve_more((self.0.call, held.reserved), rows, images, left)?;
        held.reserved = held.reserved.plus(more);
        held.rest = held.rest.plus(more);
        Ok(())
    }

    /// Rejects a call that would wait for `wait` on something else. `left` is the time until the deadline.
    pub(crate) fn check_wait(&self, wait: Duration, left: Duration) -> Result<(), EngineError> {
        self.0.admission.check_time(wait, Duration::ZERO, left)
    }

    /// Reserves `bytes` more for this call.
    pub(crate) fn reserve_bytes(&self, bytes: u64) -> Result<(), EngineError> {
        let mut held = self.held();
        self.0.admission.reserve_more_bytes(self.0.call, bytes)?;
        held.rest.bytes += bytes;
        Ok(())
    }

    /// Moves `rows` and up to `images` from the call's reservation to a task.
    ///
    /// # Errors
    /// `TooManyRows` when the call has fewer rows left.
    pub(crate) fn claim(&self, rows: usize, images: usize) -> Result<TaskReservation, EngineError> {
        let mut held = self.held();
        if rows > held.rest.rows {
            return Err(EngineError::TooManyRows { rows, capacity: held.rest.rows });
        }
        let images = images.min(held.rest.images);
        held.rest.rows -= rows;
        held.rest.images -= images;
        drop(held);
        Ok(TaskReservation { room: self.clone(), rows, images, encodings: 0 })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.admission.end_call(self.call, held.rest);
    }
}

impl TaskReservation {
    pub(crate) fn call(&self) -> CallId {
        self.room.call()
    }

    /// Cache hit, or the image is in flight for another task: it costs this task nothing. If that other task leaves,
    /// its encoding continues uncounted.
    pub(crate) fn record_cache_hit(&mut self) {
        self.room.0.admission.record_lookup(self.call().client, false);
        self.give_back_image();
    }

    fn give_back_image(&mut self) {
        if self.images > 0 {
            self.images -= 1;
            let image = Usage { images: 1, ..Usage::default() };
            self.room.0.admission.give_back(self.room.0.call, image);
        }
    }

    /// A row of the task has run its last unit, after so many tokens in all.
    pub(crate) fn record_row(&self, tokens: f64) {
        self.room.0.admission.record_row(self.call().client, tokens);
    }

    /// Cache miss: the image will be encoded for this task.
    pub(crate) fn record_cache_miss(&mut self) {
        self.room.0.admission.record_lookup(self.call().client, true);
        if self.images > 0 {
            self.give_back_image();
            self.encodings += 1;
            let encoding = Usage { encodings: 1, ..Usage::default() };
            self.room.0.admission.take(self.room.0.call, encoding);
        }
    }

    /// The encoding of an image for this task is complete.
    pub(crate) fn record_encoded(&mut self) {
        if self.encodings > 0 {
            self.encodings -= 1;
            let encoding = Usage { encodings: 1, ..Usage::default() };
            self.room.0.admission.give_back(self.room.0.call, encoding);
        }
    }
}

impl Drop for TaskReservation {
    fn drop(&mut self) {
        let Self { rows, images, encodings, .. } = *self;
        let taken = Usage { rows, images, encodings, bytes: 0 };
        self.room.0.admission.give_back(self.room.0.call, taken);
    }
}
