//! Admission of bulk work, which waits for room instead of being rejected.
//!
//! A request of bulk work is admitted as a call that reads lines ([`admit_bulk`](AdmissionController::admit_bulk)), and each
//! line as a further call ([`admit_part`](AdmissionController::admit_part)).
//!
//! Bulk work may hold as many rows and images as half of `capacity_rows`, on top of the rows of interactive calls, and a
//! quarter of `capacity_bytes`. So it can fill the worker's batches but not lock interactive calls out. It has no limit on
//! its estimated wait: it runs behind all other work, and only its deadline ends it.

use std::sync::Arc;

use super::{AdmissionController, CallReservation, Refusal, State, Usage};
use crate::engine::EngineError;
use crate::engine::ids::CallId;
use crate::fairness::{self, ClientId};

impl AdmissionController {
    /// Admits a call of bulk work, which uses no capacity yet.
    pub(crate) fn admit_bulk(
        self: &Arc<Self>,
        client: ClientId,
    ) -> Result<CallReservation, EngineError> {
        let mut state = self.state();
        if state.closed {
            return Err(self.refuse(Refusal::Draining, EngineError::ShuttingDown));
        }
        let call = CallId { client: client.bulk(), number: state.next_call };
        state.next_call += 1;
        self.add(&mut state, call, Usage::default());
        drop(state);
        Ok(CallReservation::new(Arc::clone(self), call))
    }

    /// Admits a further call for a part of an admitted one, even during a drain. The part uses no capacity yet.
    pub(super) fn admit_part(self: &Arc<Self>, of: CallId) -> CallReservation {
        let mut state = self.state();
        let call = CallId { number: state.next_call, ..of };
        state.next_call += 1;
        self.add(&mut state, call, Usage::default());
        drop(state);
        CallReservation::new(Arc::clone(self), call)
    }

    /// Reserves `more` for a call of bulk work. Waits until there is room.
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
            return Err(self.refuse(Refusal::Full, error));
        }
        let mut waiter = None;
        loop {
            // Registered before the check. Otherwise a notification between the check and the wait would be lost.
            let freed = self.freed.notified();
            {
                let mut state = self.state();
                if self.has_room(&state, call.client, more) {
                    self.add(&mut state, call, more);
                    return Ok(());
                }
                waiter.get_or_insert_with(|| {
                    state.waiting += 1;
                    Waiter(self)
                });
            }
            freed.await;
        }
    }

    fn has_room(&self, state: &State, client: ClientId, more: Usage) -> bool {
        let State { usage, bulk, bulk_clients: clients, .. } = state;
        let own = state.clients.get(&client).map(|client| client.usage).unwrap_or_default();
        let images = |usage: &Usage| (usage.images + usage.encodings) as u64;
        let rows = |usage: &Usage| usage.rows as u64;
        let fit = |capacity: u64, all: u64, own: u64, more: u64| {
            // Whatever is alone fits, however large it is.
            more == 0 || all == 0 || fairness::fits(capacity, all, own, *clients, more)
        };
        let most_rows = (self.settings.capacity_rows / 2).max(1) as u64;
        let most_bytes = (self.settings.capacity_bytes / 4).max(1);
        if !more.is_work() {
            // Lines that are still being read must leave room for the work on those that have been.
            return fit(most_bytes / 2, bulk.bytes, own.bytes, more.bytes);
        }
        if !bulk.is_work() {
            return true;
        }
        fit(most_rows, rows(bulk), rows(&own), rows(&more))
            && fit(most_rows, images(bulk), images(&own), images(&more))
            && fit(most_bytes, bulk.bytes, own.bytes, more.bytes)
            && fit(self.settings.capacity_bytes, usage.bytes, own.bytes, more.bytes)
    }
}

/// Counts a call that waits for room until it is dropped.
struct Waiter<'a>(&'a AdmissionController);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
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
    use crate::telemetry::metrics::Metrics;

    fn admission() -> Arc<AdmissionController> {
        let settings =
            EngineSettings { capacity_rows: 10, capacity_bytes: 800, ..EngineSettings::default() };
        AdmissionController::new(&settings, Arc::new(Metrics::try_new().unwrap()))
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
        let [first, second] = [request.admit_part(), request.admit_part()];
        assert!(poll(pin!(first.reserve_when_room(4, 1, 100))).is_ready());
        // Half of the rows are for bulk work.
        {
            let mut waiting = pin!(second.reserve_when_room(2, 1, 100));
            assert!(poll(waiting.as_mut()).is_pending());
            assert_eq!(admission.state().waiting, 1);
            assert!(poll(waiting.as_mut()).is_pending());
            drop(first);
            assert!(poll(waiting.as_mut()).is_ready());
        }
        assert_eq!(admission.state().waiting, 0);
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
    fn lines_that_are_read_leave_room_for_those_that_run() {
        let admission = admission();
        let reader = admission.admit_bulk(CLIENT).unwrap();
        assert!(poll(pin!(reader.reserve_when_room(0, 0, 90))).is_ready());
        assert!(poll(pin!(reader.reserve_when_room(0, 0, 20))).is_pending());
        let line = reader.admit_part();
        assert!(poll(pin!(line.reserve_when_room(1, 0, 100))).is_ready());
        reader.set_bytes(0);
        assert_eq!(admission.state().bulk.bytes, 100);
        line.set_bytes(7);
        assert_eq!(admission.state().usage.bytes, 7);
    }

    #[test]
    fn a_drain_admits_parts_but_no_requests() {
        let admission = admission();
        let request = admission.admit_bulk(CLIENT).unwrap();
        admission.close();
        assert!(matches!(admission.admit_bulk(CLIENT), Err(EngineError::ShuttingDown)));
        let line = request.admit_part();
        assert!(line.call().client.is_bulk());
        assert!(poll(pin!(line.reserve_when_room(1, 0, 0))).is_ready());
    }
}
