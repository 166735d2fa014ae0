//! The inference engine: admission control, continuous batching, and one worker thread per device that owns the models.
//! `http` calls it through [`EngineHandle`], `app` starts and stops it. The models themselves are in `model`, behind
//! [`backend`].
//!
//! - [`backend`]: the trait between the engine and the models; no tensor crosses it.
//! - `admission`: admission control. Capacity in rows and bytes is reserved before any work is done.
//! - `plan`: what a task needs (images, single-pass rows, groups) and how its answer is assembled.
//! - `scheduler`: the pure policy that picks the next work unit; it uses no clock, channel or tensor.
//! - `features`: the cache of encoded images: single flight, bounded in bytes.
//! - `worker`: the worker thread, a loop around the scheduler.
//! - `handle`: the API that `http` uses.
//! - `lifecycle`: starting and stopping.
//! - `sync`: the locks, flags, inbox and thread that the engine uses; tests replace them to explore schedules
//!   (`schedules`).
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
pub use handle::{
    Admission, Answered, EngineHandle, EngineState, Reply, ReservationGuard, TokenStream,
};
pub use lifecycle::{Engine, StartError};
pub use settings::{EngineSettings, SettingsError};
pub use shared::EngineStats;
pub use worker::Rebuild;
