//! The locks, flags, inbox and thread that the engine's threads share. Outside this crate's own tests they are simply
//! those of `std` and tokio.
//!
//! In those tests each value checks at its creation whether a schedule-exploring checker (shuttle) runs the code. If so
//! it uses the checker's counterpart (`twins`, `inbox`), which may switch to another thread before each operation. This
//! way the handle, the admission controller and the worker's loop run under thousands of chosen schedules
//! (`schedules`). They do so in the same build, and next to the same tests, that run them on real threads. A feature or
//! `--cfg` would need a second build that somebody has to remember, and generic parameters would spread to every
//! signature of the engine.
//!
//! Counters, metrics, replies and token streams are not replaced: each of their operations is part of a larger step.
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
