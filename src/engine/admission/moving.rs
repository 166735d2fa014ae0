//! The move of a call to another worker, when its rows are known and it has none yet
//! ([`Admission::reserve`](crate::engine::Admission::reserve)).

use std::sync::Arc;
use std::time::Duration;

use super::{AdmissionController, CallReservation, Usage};
use crate::engine::ids::CallId;

impl AdmissionController {
    /// Returns the number of interactive rows in use.
    pub(crate) fn interactive_rows(&self) -> usize {
        let state = self.state();
        state.usage.rows - state.bulk.rows
    }

    /// True if an admitted call that has no rows yet could reserve `rows` and `images` here, and `bytes` more bytes.
    pub(crate) fn would_reserve(
        &self,
        call: CallId,
        (rows, images): (usize, usize),
        bytes: u64,
        left: Duration,
    ) -> bool {
        let state = self.state();
        let more = Usage { rows, images, bytes, ..Usage::default() };
        self.check_wait(&state, call, (rows, images), left).is_ok()
            && self.check_capacity(&state, call.client, more).is_ok()
    }

    /// Admits a call that another worker has admitted, even during a drain, and reserves its `bytes`. `None` if there is no
    /// room for them.
    pub(super) fn take_over(
        self: &Arc<Self>,
        call: CallId,
        bytes: u64,
        whole: Option<CallReservation>,
    ) -> Option<CallReservation> {
        let mut state = self.state();
        let more = Usage { bytes, ..Usage::default() };
        self.check_capacity(&state, call.client, more).ok()?;
        let reservation = self.begin_call(&mut state, call, whole);
        self.add(&mut state, call, more);
        Some(reservation)
    }
}
