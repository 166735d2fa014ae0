//! Admission of bulk work, which waits for room instead of being rejected.
//!
//! A request of bulk work is admitted as a call that reads lines ([`admit_bulk`](AdmissionController::admit_bulk)), and each
//! line as a further call ([`admit_part`](AdmissionController::admit_part)).
//!
//! Bulk work may hold as many rows and images as half of `capacity_rows`, on top of the rows of interactive calls, and a
//! quarter of `capacity_bytes`. So it can fill the worker's batches but not lock interactive calls out. It has no limit on
//! its estimated wait: it runs behind all other work, and only its deadline ends it.

use std::sync::Arc;

use super::{AdmissionController, CallReservation, RejectReason, Rejection, State, Usage};
use crate::engine::EngineError;
use crate::engine::ids::CallId;
use crate::fairness::{self, ClientId};

impl AdmissionController {
    /// Admits a call of bulk work, which uses no capacity yet.
    pub(crate) fn admit_bulk(
        self: &Arc<Self>,
        client: ClientId,
    ) -> Result<CallReservation, EngineError> {
        let call = CallId { client: client.bulk(), number: self.numbers.next() };
        Ok(self.begin_call(&mut *self.open_state()?, call, None))
    }

    /// Admits a further call for a part of an admitted one, even during a drain. The part uses no capacity yet. The whole
    /// call may belong to another worker's controller.
    pub(crate) fn admit_part(self: &Arc<Self>, whole: &CallReservation) -> CallReservation {
        let call = CallId { client: whole.call().client, number: self.numbers.next() };
        self.begin_call(&mut self.state(), call, Some(whole.clone()))
    }

    /// Reserves `more` for a call of bulk work. Waits until there is room, in the order of arrival, so that a large line
    /// does not wait for ever behind small ones.
    ///
    /// # Errors
    /// `TooManyRows` if there will never be room.
    pub(super) async fn reserve_when_room(
        &self,
        call: CallId,
        more: Usage,
    ) -> Result<(), EngineError> {
        let capacity = self.settings.capacity_rows;
        if more.rows > capacity {
            let error = EngineError::TooManyRows { rows: more.rows, capacity };
            return Err(self.count(Rejection(RejectReason::Full, error)));
        }
        let waiter = Waiter { admission: self, call };
        self.state().waiting.push_back(call);
        loop {
            // Registered before the check. Otherwise a notification between the check and the wait would be lost.
            let freed = self.freed.notified();
            {
                let mut state = self.state();
                if self.has_room(&state, call, more) {
                    self.add(&mut state, call, more);
                    drop(state);
                    drop(waiter);
                    return Ok(());
                }
            }
            freed.await;
        }
    }

    fn has_room(&self, state: &State, call: CallId, more: Usage) -> bool {
        let State { usage, bulk, bulk_clients: clients, .. } = state;
        let own = state.clients.get(&call.client).map(|client| client.usage).unwrap_or_default();
        // Clients without work in progress need not wait behind the large lines of others.
        let is_next = state.waiting.front() == Some(&call) || !own.is_work();
        if !bulk.is_work() {
            // Whatever is alone fits, however large it is.
            return is_next;
        }
        let images = |usage: &Usage| (usage.images + usage.encodings) as u64;
        let rows = |usage: &Usage| usage.rows as u64;
        let fit = |capacity: u64, all: u64, own: u64, more: u64| {
            more == 0 || all == 0 || fairness::fits(capacity, all, own, *clients, more)
        };
        let most_rows = (self.settings.capacity_rows / 2).max(1) as u64;
        let most_bytes = (self.settings.capacity_bytes / 4).max(1);
        is_next
            && fit(most_rows, rows(bulk), rows(&own), rows(&more))
            && fit(most_rows, images(bulk), images(&own), images(&more))
            && fit(most_bytes, bulk.bytes, own.bytes, more.bytes)
            && fit(self.settings.capacity_bytes, usage.bytes, own.bytes, more.bytes)
    }
}

/// A call that waits for room until this is dropped.
struct Waiter<'a> {
    admission: &'a AdmissionController,
    call: CallId,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.waiting.retain(|waiting| *waiting != self.call);
        drop(state);
        // The next call may be first now.
        self.admission.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::engine::EngineSettings;
    use crate::engine::ids::CallNumbers;
    use crate::telemetry::metrics::Metrics;

    fn admission() -> Arc<AdmissionController> {
        let settings =
            EngineSettings { capacity_rows: 10, capacity_bytes: 800, ..EngineSettings::default() };
        let metrics = Arc::new(Metrics::try_new().unwrap());
        AdmissionController::new(&settings, metrics, CallNumbers::default())
    }

    /// Polls once; the test polls again itself, so no waker is needed.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    const CLIENT: ClientId = ClientId(1);

    #[test]
    fn bulk_work_waits_for_room_and_gets_it() {
        let admission = admission();
        let request = admission.admit_bulk(CLIENT).unwrap();
        let [first, second] = [admission.admit_part(&request), admission.admit_part(&request)];
        assert!(poll(pin!(first.reserve_when_room(4, 1, 100))).is_ready());
        // Half of the rows are for bulk work.
        {
            let mut waiting = pin!(second.reserve_when_room(2, 1, 100));
            assert!(poll(waiting.as_mut()).is_pending());
            assert_eq!(admission.state().waiting.len(), 1);
            assert!(poll(waiting.as_mut()).is_pending());
            drop(first);
            assert!(poll(waiting.as_mut()).is_ready());
        }
        assert!(admission.state().waiting.is_empty());
        assert_eq!(admission.rows(), 2);
        drop((second, request));
        assert_eq!(admission.state().usage, Usage::default());
        assert_eq!(admission.state().bulk_clients, 0);
    }

    #[test]
    fn interactive_calls_find_all_their_rows_beside_bulk_work() {
        let admission = admission();
        let bulk = admission.admit_bulk(CLIENT).unwrap();
        assert!(poll(pin!(bulk.reserve_when_room(5, 0, 0))).is_ready());
        let now = Instant::now();
        let left = Duration::from_secs(30);
        let call = admission.admit(ClientId(2), 0, now + left, now).unwrap();
        call.reserve(10, 0, left).unwrap();
        assert_eq!(admission.rows(), 15);
        // A line that is too large for any share runs alone, but never more than everything.
        let other = admission.admit_bulk(ClientId(3)).unwrap();
        let refused = poll(pin!(other.reserve_when_room(11, 0, 0)));
        assert!(matches!(refused, Poll::Ready(Err(EngineError::TooManyRows { rows: 11, .. }))));
        drop(bulk);
        assert!(poll(pin!(other.reserve_when_room(9, 0, 0))).is_ready());
    }

    #[test]
    fn a_large_line_does_not_wait_behind_later_small_ones() {
        let admission = admission();
        let request = admission.admit_bulk(CLIENT).unwrap();
        let [running, large, small] = [(); 3].map(|()| admission.admit_part(&request));
        assert!(poll(pin!(running.reserve_when_room(2, 0, 0))).is_ready());
        let mut large = pin!(large.reserve_when_room(5, 0, 0));
        assert!(poll(large.as_mut()).is_pending());
        let mut small = pin!(small.reserve_when_room(1, 0, 0));
        assert!(poll(small.as_mut()).is_pending(), "it would fit");
        // A client without work in progress is not held up.
        let other = admission.admit_bulk(ClientId(2)).unwrap();
        assert!(poll(pin!(other.reserve_when_room(1, 0, 0))).is_ready());
        drop((running, other));
        assert!(poll(large.as_mut()).is_ready());
        assert!(poll(small.as_mut()).is_pending(), "it must wait for room now");
    }

    #[test]
    fn a_drain_admits_parts_but_no_requests() {
        let admission = admission();
        let request = admission.admit_bulk(CLIENT).unwrap();
        admission.close();
        assert!(matches!(admission.admit_bulk(CLIENT), Err(EngineError::ShuttingDown)));
        let line = admission.admit_part(&request);
        assert!(line.call().client.is_bulk());
        assert!(poll(pin!(line.reserve_when_room(1, 0, 0))).is_ready());
    }
}
