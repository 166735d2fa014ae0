//! The inference engine: admission control, continuous batching, and one worker thread for each device, which owns the
//! models. There is one worker on the CPU, or one for each GPU; a call belongs to the worker with the shortest queue.
//! `http` calls it through [`EngineHandle`], and `app` starts and stops it. The models themselves are in `model`,
//! behind [`backend`].
//!
//! - [`backend`]: the trait between the engine and the models; no tensor crosses it.
//! - `admission`: admission control. Capacity in rows and bytes is reserved before any work is done.
//! - `plan`: which images, single-pass rows and groups a task needs, and how its answer is assembled.
//! - `scheduler`: the pure policy that picks the next work unit; it uses no clock, channel or tensor.
//! - `features`: the cache of encoded images, with single flight and a limit in bytes.
//! - `worker`: the worker thread, a loop around the scheduler. `worker_handle` is how the handle sees it.
//! - `handle`, `call`: the API that `http` uses: the engine, and an admitted call.
//! - `failure_backoff`: for how long new calls avoid a worker whose units have failed.
//! - [`lifecycle`](Lifecycle): the state of the process: loading, ready, rebuilding, draining, down.
//! - `start`: starting and stopping.
//! - `moving_average`: what the measured costs are averaged by.
//! - `sync`: the locks, inbox and thread that the engine uses. Tests replace them to explore thread schedules.
//! - `testing`: scaffolding for the tests of the engine and of other folders; needs the feature `test-util`.
//!
//! Terms (more in `docs/glossary.md`): a *row* is one sequence that a text tower processes. A *single-pass row* needs
//! one pass through the tower. A *group* is what one search decodes, step by step: a single sequence, or the beams of
//! one beam search. An *item* is a row or a group. A *work unit* is what the worker runs without interruption: either a
//! vision batch, or a *text unit*, which is a batch of single-pass rows or a decode step. A *stage* is vision or text.

mod admission;
pub mod backend;
mod call;
mod clock;
mod error;
mod failure_backoff;
mod features;
mod handle;
mod heartbeat;
mod ids;
mod lifecycle;
mod moving_average;
mod plan;
mod scheduler;
mod settings;
mod shared;
mod start;
mod sync;
#[cfg(feature = "test-util")]
pub mod testing;
#[cfg(test)]
mod tests;
mod worker;
mod worker_handle;

pub use admission::Estimates;
pub use call::{Admission, Answered, Reply, ReservationGuard, TokenStream};
pub use clock::Clock;
pub use error::{EngineError, WarmUpError};
pub use handle::EngineHandle;
pub use lifecycle::{Lifecycle, Phase};
pub use settings::EngineSettings;
pub use shared::EngineStats;
pub use start::{Engine, EngineContext, StartError, WorkerBackend};
pub use worker::Rebuild;
