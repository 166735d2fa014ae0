//! The worker: a loop around the scheduler that owns the backend, the feature cache and every admitted task.
//!
//! - `turn`: [`Worker`](turn::Worker) with its tasks, and one turn of the loop.
//! - `units`: runs vision batches, batches of single-pass rows, and decode steps.
//! - `tasks`: a task on its way to the worker, and one that has no outcome yet.
//! - `items`: the rows and groups that wait or run.
//! - `thread`: the loop and its inbox.
//! - `supervision`: rebuilds a backend that has failed.
//! - `fault`: catches the backend's panics and errors, and searches for the item at fault.
//! - `warm_up`: measures costs before the first request.
//! - `probe`: checks whether the backend works, after a failure that the backend may have caused.
//! - `meter`: metrics and counters.
//!
//! Everything here runs on one thread, one turn after another; tests call it without a thread. Answers are sent at the
//! end of a turn, after the gauges have been updated.

mod fault;
mod items;
mod meter;
mod probe;
#[cfg(test)]
mod properties;
mod supervision;
mod tasks;
mod thread;
mod turn;
mod units;
mod warm_up;

pub use self::supervision::Rebuild;
pub(crate) use self::supervision::spawn;
pub(crate) use self::tasks::Submission;
pub(crate) use self::thread::Message;
