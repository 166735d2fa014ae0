//! A mutex and a thread handle: those of `std` on a real thread, and those of shuttle on a thread of an explored
//! schedule. In a simulation (`platform::simulated`) the mutex is that of `std`, and the thread is simulated. This module
//! also wraps tokio's `Notify`, so that shuttle may switch threads before each of its operations.

use std::any::Any;
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{LockResult, PoisonError};

use tokio::sync::futures::Notified;

use crate::platform::simulated;

/// True if the current thread belongs to a schedule that shuttle explores.
pub(super) fn is_explored() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// Lets shuttle switch to another thread. Does nothing on a real thread.
pub(crate) fn point() {
    if is_explored() {
        // This is shuttle's cheapest operation.
        shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(crate) enum Mutex<T> {
    Real(std::sync::Mutex<T>),
    Explored(shuttle::sync::Mutex<T>),
}

#[derive(Debug)]
pub(crate) enum MutexGuard<'a, T> {
    Real(std::sync::MutexGuard<'a, T>),
    Explored(shuttle::sync::MutexGuard<'a, T>),
}

/// Wraps the guard in `result` with `wrap`, whether the lock is poisoned or not.
fn guarded<G, H>(result: LockResult<G>, wrap: impl Fn(G) -> H) -> LockResult<H> {
    match result {
        Ok(guard) => Ok(wrap(guard)),
        Err(poisoned) => Err(PoisonError::new(wrap(poisoned.into_inner()))),
    }
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        if is_explored() {
            Self::Explored(shuttle::sync::Mutex::new(value))
        } else {
            Self::Real(std::sync::Mutex::new(value))
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self {
            Self::Real(mutex) => guarded(mutex.lock(), MutexGuard::Real),
            Self::Explored(mutex) => guarded(mutex.lock(), MutexGuard::Explored),
        }
    }

    pub(crate) fn get_mut(&mut self) -> LockResult<&mut T> {
        match self {
            Self::Real(mutex) => mutex.get_mut(),
            Self::Explored(mutex) => mutex.get_mut(),
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Real(guard) => guard,
            Self::Explored(guard) => guard,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Real(guard) => guard,
            Self::Explored(guard) => guard,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Notify(tokio::sync::Notify);

impl Notify {
    pub(crate) fn new() -> Self {
        Self(tokio::sync::Notify::new())
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        point();
        self.0.notified()
    }

    pub(crate) fn notify_waiters(&self) {
        point();
        self.0.notify_waiters();
    }
}

#[derive(Debug)]
pub(crate) struct Builder(Option<String>);

#[derive(Debug)]
pub(crate) enum JoinHandle<T> {
    Real(std::thread::JoinHandle<T>),
    Explored(shuttle::thread::JoinHandle<Result<T, Box<dyn Any + Send>>>),
    /// A simulation waits for the end of its threads by itself.
    Simulated,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self(None)
    }

    pub(crate) fn name(mut self, name: String) -> Self {
        self.0 = Some(name);
        self
    }

    pub(crate) fn spawn<T: Send + 'static>(
        self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let name = self.0.unwrap_or_default();
        if is_explored() {
            // As with `std`, a panic must end only this thread. If it were not caught here, it would end the checker.
            let body = || catch_unwind(AssertUnwindSafe(body));
            shuttle::thread::Builder::new().name(name).spawn(body).map(JoinHandle::Explored)
        } else if simulated::is_active() {
            simulated::spawn(move || {
                let _ = catch_unwind(AssertUnwindSafe(body));
            });
            Ok(JoinHandle::Simulated)
        } else {
            std::thread::Builder::new().name(name).spawn(body).map(JoinHandle::Real)
        }
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn join(self) -> std::thread::Result<T> {
        match self {
            Self::Real(thread) => thread.join(),
            Self::Explored(thread) => thread.join().and_then(|result| result),
            Self::Simulated => panic!("a simulated thread cannot be joined"),
        }
    }
}
