//! [`Monitor`]: a mutex with a condition variable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A value behind a mutex, with a condition variable that is notified when the value changes.
///
/// A poisoned mutex is used like any other: no code that uses a monitor panics while it holds the lock, so the value is
/// consistent.
#[derive(Debug)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Signal,
}

#[cfg(not(test))]
type Signal = std::sync::Condvar;
#[cfg(test)]
type Signal = super::simulated::Signal;

impl<T> Monitor<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Signal::new() }
    }

    /// Locks the value.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, waits for a notification, and locks the value again. May also return without a notification.
    #[cfg(not(test))]
    pub(crate) fn wait<'a>(&'a self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, waits for a notification, and locks the value again. May also return without a notification.
    #[cfg(test)]
    pub(crate) fn wait<'a>(&'a self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        match &self.changed {
            Signal::Real(changed) => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Signal::Simulated(changed) => {
                let notified = std::sync::Arc::clone(changed).notified_owned();
                drop(guard);
                super::simulated::wait_for(notified);
                self.lock()
            }
        }
    }

    /// Wakes one waiting thread.
    pub(crate) fn notify_one(&self) {
        self.changed.notify_one();
    }

    /// Wakes all waiting threads.
    pub(crate) fn notify_all(&self) {
        self.changed.notify_all();
    }
}
