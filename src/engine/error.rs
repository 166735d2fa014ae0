//! Why the engine rejected a request or failed to answer a task ([`EngineError`]), and why it cannot serve at all
//! ([`WarmUpError`]). `http` maps each variant to a status; the texts are for logs.

use std::time::Duration;

/// Why a request was rejected, or why an admitted task has no answer. These are results, never panics.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// No capacity left: rows, bytes, or an estimated wait above `max_queue_wait` or beyond the deadline.
    #[error("overloaded")]
    Overloaded {
        /// When to try again, estimated from the work that is queued.
        retry_after: Duration,
    },
    /// More work than an idle server could finish before the deadline; retrying does not help.
    #[error(
        "the call needs about {estimate:?} on an idle server, but its deadline is in {deadline:?}"
    )]
    TooLargeForDeadline {
        /// Estimated service time on an idle server.
        estimate: Duration,
        /// Time left until the call's deadline.
        deadline: Duration,
    },
    /// More rows than the queue's whole capacity.
    #[error("{rows} rows exceed the queue's capacity of {capacity}")]
    TooManyRows {
        /// Rows that the call or task needs.
        rows: usize,
        /// Rows that the queue holds in all, or that the call has reserved and not yet used.
        capacity: usize,
    },
    /// The engine is draining: nothing new is admitted. Or the drain time ended before the task was done.
    #[error("shutting down")]
    ShuttingDown,
    /// The worker thread has ended, hangs, or is rebuilding its backend.
    #[error("the worker is down")]
    WorkerDown,
    /// The deadline passed before the task was done.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The client read its token stream too slowly, so its task was cancelled.
    #[error("the stream's reader is too slow")]
    SlowReader,
    /// The backend failed or panicked on this task. The cause has been logged.
    #[error("inference failed: {0}")]
    InferenceFailed(String),
}

/// Why the warm-up failed. The engine must not serve after such an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WarmUpError {
    /// A model was loaded but cannot compute.
    #[error(
        "model {model} cannot be served: {unit} failed during warm-up: {cause}; check its weights, number format and \
         device: download or save the checkpoint again, or try another --dtype or --device"
    )]
    ModelFailed {
        /// Name of the model, as requests use it.
        model: String,
        /// The work that failed, such as "encoding an image".
        unit: &'static str,
        /// The backend's error, or the message of its panic.
        cause: String,
    },
    /// The worker thread ended before the warm-up did.
    #[error("the worker thread ended during warm-up")]
    WorkerDown,
}
