//! The locks, flags, inbox and thread that the engine's threads share: `std`'s and tokio's, and nothing else, outside
//! this crate's own tests.
//!
//! In those tests each value asks when it is made whether a schedule-exploring checker (shuttle) runs the code, and is
//! then the checker's twin (`twins`, `inbox`), which hands over to another thread before each operation. So the handle,
//! the ledger and the worker's loop run under thousands of chosen schedules (`schedules`) in the very build, and beside
//! the very tests, that run them on real threads: a feature or `--cfg` would want a second build that somebody has to
//! remember, and generic parameters would reach every signature of the engine.
//!
//! Counters, metrics, replies and token streams stay what they are: each of their operations is part of a step.
//! Memory orderings are not explored: under the checker every operation is sequentially consistent.

#[cfg(test)]
mod inbox;
#[cfg(test)]
mod twins;

pub(crate) use std::sync::mpsc::{RecvTimeoutError, TryRecvError, TrySendError};

#[cfg(not(test))]
pub(crate) use std::sync::atomic::AtomicBool;
#[cfg(not(test))]
pub(crate) use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(test))]
pub(crate) use std::thread::{Builder, JoinHandle};
#[cfg(not(test))]
pub(crate) use tokio::sync::Notify;

#[cfg(test)]
pub(crate) use self::inbox::{Receiver, SyncSender, sync_channel};
#[cfg(test)]
pub(crate) use self::twins::{AtomicBool, Builder, JoinHandle, Mutex, MutexGuard, Notify, point};
