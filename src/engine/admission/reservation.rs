//! The reservations of a call and of its tasks. They are guards that release their capacity when dropped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{AdmissionController, Usage};
use crate::engine::EngineError;
use crate::engine::ids::CallId;
use crate::engine::sync::{Mutex, MutexGuard};

/// A call's reservation: the rows and images that are not yet submitted, and all the bytes. The call's
/// [`Admission`](crate::engine::Admission) and the reservations of its tasks share it. The bytes are released when the
/// last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct CallReservation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    admission: Arc<AdmissionController>,
    call: CallId,
    held: Mutex<Held>,
    /// The call of which this one is a part. It stays in progress as long as its parts.
    whole: Option<CallReservation>,
}

#[derive(Debug, Default)]
struct Held {
    /// Rows and images reserved so far, submitted ones included. A further reservation adds only the difference.
    reserved: Usage,
    /// Rows and images that are reserved and not yet submitted, and all the bytes.
    rest: Usage,
    /// Wait plus service time that was expected at the last reservation.
    expected: Duration,
}

/// Reservation of one submitted task: its rows and images. It is dropped, and the rows are released, when the task
/// ends.
#[derive(Debug)]
pub(crate) struct TaskReservation {
    reservation: CallReservation,
    rows: usize,
    /// Number of images not yet looked up in the feature cache.
    images: usize,
    /// Number of cache misses: images that are still to be encoded for this task.
    encodings: usize,
}

impl CallReservation {
    pub(super) fn new(
        admission: Arc<AdmissionController>,
        call: CallId,
        whole: Option<Self>,
    ) -> Self {
        let held = Mutex::new(Held::default());
        Self(Arc::new(Inner { admission, call, held, whole }))
    }

    pub(crate) fn call(&self) -> CallId {
        self.0.call
    }

    /// Raises the reservation to a total of `rows` rows and `images` images. `left` is the time until the deadline.
    pub(crate) fn reserve(
        &self,
        rows: usize,
        images: usize,
        left: Duration,
    ) -> Result<(), EngineError> {
        let mut held = self.held();
        let (more, expected) =
            self.0.admission.reserve_more((self.0.call, held.reserved), rows, images, left)?;
        held.expected = expected;
        held.reserved = held.reserved.plus(more);
        held.rest = held.rest.plus(more);
        Ok(())
    }

    /// Rejects the call if `wait` is too long. `wait` is the call's estimated wait outside the engine, and `left` is
    /// the time until the call's deadline.
    pub(crate) fn check_wait(&self, wait: Duration, left: Duration) -> Result<(), EngineError> {
        self.0.admission.reject_long_wait(wait, left)
    }

    /// Reserves `bytes` more for this call.
    pub(crate) fn reserve_bytes(&self, bytes: u64) -> Result<(), EngineError> {
        if bytes == 0 {
            return Ok(());
        }
        let mut held = self.held();
        self.0.admission.reserve_more_bytes(self.0.call, bytes)?;
        held.rest.bytes += bytes;
        Ok(())
    }

    /// Reserves rows, images and bytes for a call of bulk work. Waits until there is room for all of them, so that no two
    /// calls wait for each other.
    ///
    /// # Errors
    /// `TooManyRows` if there will never be room.
    pub(crate) async fn reserve_when_room(
        &self,
        rows: usize,
        images: usize,
        bytes: u64,
    ) -> Result<(), EngineError> {
        let more = Usage { rows, images, encodings: 0, bytes };
        self.0.admission.reserve_when_room(self.0.call, more).await?;
        let mut held = self.held();
        held.reserved = held.reserved.plus(Usage { bytes: 0, ..more });
        held.rest = held.rest.plus(more);
        Ok(())
    }

    /// Returns the number of bytes that the call has reserved.
    pub(crate) fn bytes(&self) -> u64 {
        self.held().rest.bytes
    }

    /// Reserves more bytes, so that the call, with the call of which it is a part, holds at least `bytes`.
    pub(crate) fn raise_bytes(&self, bytes: u64) -> Result<(), EngineError> {
        let of_whole = self.0.whole.as_ref().map_or(0, Self::bytes);
        self.reserve_bytes(bytes.saturating_sub(self.bytes() + of_whole))
    }

    /// Moves the call and its bytes to the controller of another worker. Changes nothing if that one has no room or is the
    /// call's own, or if something else holds a part of the reservation. The call must not have rows yet.
    pub(crate) fn move_to(&mut self, other: &Arc<AdmissionController>) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.0) else { return false };
        if Arc::ptr_eq(&inner.admission, other) {
            // The end of the old call would remove the new one, which has the same id.
            return false;
        }
        let bytes = inner.held.get_mut().unwrap_or_else(PoisonError::into_inner).rest.bytes;
        let Some(moved) = other.take_over(inner.call, bytes, inner.whole.clone()) else {
            return false;
        };
        moved.held().rest.bytes = bytes;
        // Drops the old reservation, which releases its bytes.
        *self = moved;
        true
    }

    /// Moves `rows` rows and up to `images` images from the call's reservation to the reservation of a new task.
    ///
    /// # Errors
    /// `TooManyRows` if fewer rows remain in the call's reservation.
    pub(crate) fn reserve_task(
        &self,
        rows: usize,
        images: usize,
    ) -> Result<TaskReservation, EngineError> {
        let mut held = self.held();
        if rows > held.rest.rows {
            return Err(EngineError::TooManyRows { rows, capacity: held.rest.rows });
        }
        let images = images.min(held.rest.images);
        held.rest.rows -= rows;
        held.rest.images -= images;
        drop(held);
        Ok(TaskReservation { reservation: self.clone(), rows, images, encodings: 0 })
    }

    /// Gives back the rows and images that are reserved and not submitted.
    pub(crate) fn release_work(&self) {
        let mut held = self.held();
        let Usage { rows, images, .. } = held.rest;
        held.rest = Usage { rows: 0, images: 0, ..held.rest };
        drop(held);
        let unused = Usage { rows, images, ..Usage::default() };
        self.0.admission.give_back(self.0.call, unused);
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
        self.reservation.call()
    }

    /// Records that an image is cached, or in flight for another task, so that this task is not charged for it. If the
    /// other task ends early, the encoding continues, but is charged to no task.
    pub(crate) fn record_cache_hit(&mut self) {
        self.reservation.0.admission.record_lookup(self.call().client, false);
        self.give_back_image();
    }

    fn give_back_image(&mut self) {
        if self.images > 0 {
            self.images -= 1;
            let image = Usage { images: 1, ..Usage::default() };
            self.reservation.0.admission.give_back(self.reservation.0.call, image);
        }
    }

    /// Records that the task has been answered, `took` after its submission.
    pub(crate) fn record_answered(&self, took: Duration) {
        let expected = self.reservation.held().expected;
        self.reservation.0.admission.record_answered(expected, took);
    }

    /// Records that a row of the task has run its last unit. It processed `tokens` tokens in all.
    pub(crate) fn record_row(&self, tokens: f64) {
        self.reservation.0.admission.record_row(self.call().client, tokens);
    }

    /// Records a cache miss: the image will be encoded for this task.
    pub(crate) fn record_cache_miss(&mut self) {
        self.reservation.0.admission.record_lookup(self.call().client, true);
        if self.images > 0 {
            self.give_back_image();
            self.encodings += 1;
            let encoding = Usage { encodings: 1, ..Usage::default() };
            self.reservation.0.admission.take(self.reservation.0.call, encoding);
        }
    }

    /// Records that the encoding of an image for this task is complete.
    pub(crate) fn record_encoded(&mut self) {
        if self.encodings > 0 {
            self.encodings -= 1;
            let encoding = Usage { encodings: 1, ..Usage::default() };
            self.reservation.0.admission.give_back(self.reservation.0.call, encoding);
        }
    }
}

impl Drop for TaskReservation {
    fn drop(&mut self) {
        let Self { rows, images, encodings, .. } = *self;
        let usage = Usage { rows, images, encodings, bytes: 0 };
        self.reservation.0.admission.give_back(self.reservation.0.call, usage);
    }
}
