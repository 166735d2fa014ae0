//! When things are computed: one dedicated worker thread per device that owns the models, and the way in.
//!
//! - [`backend`]: the seam to whoever computes; no tensor in it.
//! - `admission`: capacity in rows and bytes, reserved before any work is done.
//! - `plan`: what a task needs (image jobs, one-pass rows, groups) and how its answer is put together.
//! - `scheduler`: the pure policy that picks the next unit; no clock, channel or tensor.
//! - `features`: encoded images, cached and single-flight, bounded in bytes.
//! - `worker`: the thread, a loop around the scheduler.
//! - `handle`: what `http` holds.
//! - `lifecycle`: starting and ending.
//! - `sync`: the locks, flags, inbox and thread of all these, which tests run under chosen schedules (`schedules`).
//! - `fake`: a scripted backend for tests, here and in `tests/it`.

mod admission;
pub mod backend;
mod clock;
mod error;
#[doc(hidden)]
pub mod fake;
mod features;
mod handle;
mod ids;
mod lifecycle;
mod plan;
mod scheduler;
#[cfg(test)]
mod schedules;
mod settings;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod worker;

pub use admission::Estimates;
pub use clock::Clock;
pub use error::{EngineError, WarmUpError};
pub use handle::{Admission, Answered, EngineHandle, EngineState, Hold, Reply, TokenStream};
pub use lifecycle::{Engine, StartError};
pub use settings::{EngineSettings, SettingsError};
pub use shared::EngineStats;
pub use worker::Rebuild;
