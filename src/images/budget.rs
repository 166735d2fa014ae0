//! The byte budget of the decodes in progress. Each decode is charged for the memory that its file's header implies.
//! The budget applies backpressure to the decoding threads: a thread waits until enough bytes are free.

use super::lock;
use std::sync::{Condvar, Mutex};

/// A counting semaphore over bytes. It blocks a decoding thread until the bytes that its decode needs are free.
#[derive(Debug)]
pub(super) struct ByteBudget {
    capacity: u64,
    used: Mutex<u64>,
    freed: Condvar,
    /// A thread holds this lock while it waits for bytes, so that a later, smaller decode cannot overtake one that
    /// needs many bytes.
    turn: Mutex<()>,
}

/// Bytes taken from a budget. Dropping the permit returns them.
#[derive(Debug)]
pub(super) struct Permit<'budget> {
    budget: &'budget ByteBudget,
    bytes: u64,
}

impl ByteBudget {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, used: Mutex::new(0), freed: Condvar::new(), turn: Mutex::new(()) }
    }

    /// Blocks until `bytes` bytes are free, and takes them. A decode that needs more than the whole budget gets the
    /// whole budget and runs alone.
    pub(super) fn acquire(&self, bytes: u64) -> Permit<'_> {
        let bytes = bytes.min(self.capacity);
        let _turn = lock(&self.turn);
        let mut used = lock(&self.used);
        while *used + bytes > self.capacity {
            used = self.freed.wait(used).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *used += bytes;
        Permit { budget: self, bytes }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *lock(&self.budget.used) -= self.bytes;
        self.budget.freed.notify_all();
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
                sender.send(*lock(&budget.used)).unwrap();
            });
            assert!(granted.try_recv().is_err());
            drop(rest);
            drop(first);
            assert_eq!(granted.recv().unwrap(), 100);
        });
        assert_eq!(*lock(&budget.used), 0);
    }
}
