//! What the service asks of its host: the time, random numbers, threads, and condition variables. Everything else in the crate that
//! waits or measures time uses this folder or tokio's timers.
//!
//! In the crate's own tests a simulation can replace all of them on its thread (`simulated`): time is then tokio's paused
//! clock, and threads are coroutines on the same thread. In other builds the functions and types here are thin wrappers
//! of those of `std`.
//!
//! - [`now`], [`elapsed`]: the monotonic clock.
//! - [`random()`]: a random number.
//! - [`Monitor`]: a mutex with a condition variable.
//! - [`spawn_background`]: starts a thread of low priority.
//!
//! The engine's worker thread and its locks have their own replacements (`engine/sync`), because a checker of thread
//! schedules controls them as well.

mod clock;
mod monitor;
mod random;
#[cfg(test)]
pub(crate) mod simulated;
mod threads;

pub(crate) use self::clock::{elapsed, now};
pub(crate) use self::monitor::Monitor;
pub(crate) use self::random::random;
pub(crate) use self::threads::spawn_background;
