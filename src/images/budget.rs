//! The byte budget of the decodes in progress. Each decode is charged for the memory that its file's header implies.
//! The budget applies backpressure to the decoding threads: a thread waits until enough bytes are free.

use crate::platform::Monitor;

/// A counting semaphore over bytes. It blocks a decoding thread until the bytes that its decode needs are free.
#[derive(Debug)]
pub(super) struct ByteBudget {
    capacity: u64,
    state: Monitor<BudgetState>,
}

/// The bytes in use, and the order of the threads that wait for bytes. A thread waits for its turn even if its bytes
/// are free, so that a later, smaller decode cannot overtake one that needs many bytes.
#[derive(Debug, Default)]
struct BudgetState {
    used: u64,
    /// Ticket of the next thread that asks for bytes.
    next_ticket: u64,
    /// Ticket of the thread whose turn it is.
    turn: u64,
}

/// Bytes taken from a budget. Dropping the permit returns them.
#[derive(Debug)]
pub(super) struct Permit<'budget> {
    budget: &'budget ByteBudget,
    bytes: u64,
}

impl ByteBudget {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, state: Monitor::new(BudgetState::default()) }
    }

    /// Blocks until `bytes` bytes are free, and takes them. A decode that needs more than the whole budget gets the
    /// whole budget and runs alone.
    pub(super) fn acquire(&self, bytes: u64) -> Permit<'_> {
        let bytes = bytes.min(self.capacity);
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.turn != ticket || state.used + bytes > self.capacity {
            state = self.state.wait(state);
        }
        state.turn += 1;
        state.used += bytes;
        drop(state);
        // The bytes of the next thread may be free as well.
        self.state.notify_all();
        Permit { budget: self, bytes }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.budget.state.lock().used -= self.bytes;
        self.budget.state.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn more_than_the_rest_waits_until_a_permit_is_dropped() {
        let budget = ByteBudget::new(100);
        let first = budget.acquire(60);
        let rest = budget.acquire(40);
        std::thread::scope(|scope| {
            let (sender, granted) = mpsc::channel();
            let budget = &budget;
            scope.spawn(move || {
                // This request exceeds the budget, so it waits until the whole budget is free.
                let _permit = budget.acquire(1000);
                sender.send(budget.state.lock().used).unwrap();
            });
            assert!(granted.try_recv().is_err());
            drop(rest);
            drop(first);
            assert_eq!(granted.recv().unwrap(), 100);
        });
        assert_eq!(budget.state.lock().used, 0);
    }
}
