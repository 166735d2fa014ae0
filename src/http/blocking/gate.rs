//! A semaphore that is fair between clients: permits go to the clients that wait in turn, and within a client to its calls
//! in turn. Bulk work waits behind all other work, but gets one permit in twenty.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::fairness::{BULK_PARTS, CallId, Pick, Turns};

/// A fair semaphore. Clones share the permits.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<State>>);

struct State {
    /// Number of permits that nobody holds. Not 0 only if nobody waits.
    free: usize,
    /// The waiters in the order of their turns.
    order: Turns<u64>,
    waiting: HashMap<u64, oneshot::Sender<Permit>>,
    next_number: u64,
    /// Number of permits that went to waiters.
    granted: u32,
}

/// A permit. Dropping it gives it to the next waiter.
pub(super) struct Permit(Gate);

/// A waiter that leaves the queue when this is dropped.
struct Waiter<'a> {
    gate: &'a Gate,
    call: CallId,
    number: u64,
}

impl Gate {
    pub(super) fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: permits,
            order: Turns::new(),
            waiting: HashMap::new(),
            next_number: 0,
            granted: 0,
        })))
    }

    /// Waits for a permit for a job of `call`.
    pub(super) async fn permit(&self, call: CallId) -> Permit {
        let (_waiter, receiver) = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Permit(self.clone());
            }
            let number = state.next_number;
            state.next_number += 1;
            let (sender, receiver) = oneshot::channel();
            state.order.push(call, number);
            state.waiting.insert(number, sender);
            (Waiter { gate: self, call, number }, receiver)
        };
        receiver.await.expect("a waiter stays in the queue until it gets a permit")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes and returns the waiter that gets the next permit.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let is_turn_of_bulk = self.granted % BULK_PARTS == BULK_PARTS - 1;
        let mut pick = Some(Pick::Take);
        let bulk = is_turn_of_bulk
            .then(|| self.order.take_bulk(|_| pick.take().unwrap_or(Pick::Stop)).pop())
            .flatten();
        let number = bulk.or_else(|| self.order.pop())?;
        self.granted = self.granted.wrapping_add(1);
        self.waiting.remove(&number)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let Some(sender) = state.next() else {
            state.free += 1;
            return;
        };
        drop(state);
        // A waiter that leaves at this moment drops the permit, which then goes to the next.
        drop(sender.send(Permit(self.0.clone())));
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.order.remove(self.call, self.number);
        state.waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fairness::ClientId;
    use futures_util::FutureExt;

    fn call(client: u64, number: u64) -> CallId {
        CallId { client: ClientId(client), number }
    }

    #[tokio::test]
    async fn permits_go_to_the_waiting_clients_in_turn() {
        let gate = Gate::new(1);
        let mut held = Some(gate.permit(call(1, 0)).await);
        // The first client has sent three jobs before the second sends one.
        let calls = [call(1, 1), call(1, 2), call(1, 3), call(2, 4)];
        let mut waiting: Vec<_> =
            calls.iter().map(|call| (call.number, Box::pin(gate.permit(*call)))).collect();
        assert!(waiting.iter_mut().all(|(_, permit)| permit.now_or_never().is_none()));
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(held.take());
            let ready = waiting.iter_mut().position(|(_, permit)| {
                held = permit.now_or_never();
                held.is_some()
            });
            order.push(waiting.remove(ready.expect("the permit is free")).0);
        }
        assert_eq!(order, [1, 4, 2, 3]);
        drop(held);
        assert_eq!(gate.state().free, 1);
    }

    #[tokio::test]
    async fn bulk_work_gets_few_permits_but_some() {
        let gate = Gate::new(1);
        let mut held = Some(gate.permit(call(1, 0)).await);
        let bulk = CallId { client: ClientId(2).bulk(), number: 1 };
        let mut bulk = Box::pin(gate.permit(bulk));
        assert!((&mut bulk).now_or_never().is_none());
        let mut others = 0;
        loop {
            // Another job of the first client always waits.
            let mut other = Box::pin(gate.permit(call(1, 2 + others)));
            assert!((&mut other).now_or_never().is_none());
            drop(held.take());
            held = other.now_or_never();
            if held.is_none() {
                break;
            }
            others += 1;
        }
        assert_eq!(others, 19);
        assert!(bulk.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_keeps_no_permit_and_no_place() {
        let gate = Gate::new(1);
        let held = gate.permit(call(1, 0)).await;
        let mut leaving = Box::pin(gate.permit(call(2, 1)));
        let mut granted = Box::pin(gate.permit(call(3, 2)));
        assert!((&mut leaving).now_or_never().is_none());
        assert!((&mut granted).now_or_never().is_none());
        drop(leaving);
        drop(held);
        // The permit has been sent, and nobody takes it.
        drop(granted);
        let state = gate.state();
        assert_eq!((state.free, state.waiting.len(), state.order.front()), (1, 0, None));
    }
}
