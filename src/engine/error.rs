//! Why the engine rejected a request or failed to answer a task ([`EngineError`]), and why it cannot serve at all
//! ([`WarmUpError`]). `http` maps each variant to a status; the texts are for logs.

use std::time::Duration;

/// Why a request was rejected, or why an admitted task has no answer. Always returned as an `Err`, never raised as a
/// panic.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// There is not enough free capacity in rows or bytes, or the estimated wait exceeds `max_queue_wait` or the
    /// deadline.
    #[error("overloaded")]
    Overloaded {
        /// How long to wait before trying again, estimated from the work that is queued.
        retry_after: Duration,
    },
    /// The call needs more time than is left until its deadline, even on an idle server; retrying does not help.
    #[error(
        "the call needs about {estimate:?} on an idle server, but its deadline is in {deadline:?}"
    )]
    TooLargeForDeadline {
        /// Estimated service time on an idle server.
        estimate: Duration,
        /// Time left until the call's deadline.
        deadline: Duration,
    },
    /// The call needs more rows than the total capacity of the queue, or the task needs more rows than remain in its
    /// call's reservation.
    #[error("{rows} rows exceed the queue's capacity of {capacity}")]
    TooManyRows {
        /// Number of rows that the call or task needs.
        rows: usize,
        /// Total capacity of the queue in rows, or number of rows that the call has reserved and not yet used.
        capacity: usize,
    },
    /// The engine is draining and admits no new calls, or the drain time ended before the task was done.
    #[error("shutting down")]
    ShuttingDown,
    /// A worker thread has ended or hangs, or the one that has the call is rebuilding its backend.
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
    /// A model was loaded but cannot run inference.
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
