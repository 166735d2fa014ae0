//! The types of the locks, inbox and thread that the engine uses. Outside this crate's own tests they are simply
//! those of `std` and tokio.
//!
//! In those tests each value checks, when it is created, whether the current thread is run by shuttle, a checker that
//! explores thread schedules. If so, the value uses shuttle's counterpart (`testing/twins`), which may switch to
//! another thread before each operation. In this way the handle, the admission controller and the worker's loop run
//! under thousands of chosen schedules (`testing/schedules`). The tests on real threads use the same build. With a
//! feature or `--cfg` instead, a second build would be needed, which is easily forgotten. Generic parameters would
//! spread to every signature of the engine.
//!
//! Counters, metrics, replies and token streams are not replaced, so the checker does not switch threads at their
//! operations. Each of these operations is part of a larger step. Memory orderings are not explored: under the checker
//! every operation is sequentially consistent.

pub(crate) use std::sync::mpsc::{RecvTimeoutError, TryRecvError, TrySendError};

#[cfg(not(test))]
pub(crate) use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
#[cfg(not(test))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(test))]
pub(crate) use std::thread::{Builder, JoinHandle};
#[cfg(not(test))]
pub(crate) use tokio::sync::Notify;

#[cfg(test)]
pub(crate) use super::testing::twins::inbox::{Receiver, SyncSender, sync_channel};
#[cfg(test)]
pub(crate) use super::testing::twins::locks::{
    Builder, JoinHandle, Mutex, MutexGuard, Notify, point,
};
