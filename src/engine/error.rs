//! Why the engine refused or could not answer. `http/error` gives each its status; texts are for logs.
//! And why it cannot serve at all: [`WarmUpError`].

use std::time::Duration;

/// Why a request was refused, or an admitted task has no answer. All of them are results, never panics.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// No room: rows, bytes, or an estimated wait above `max_queue_wait` or the deadline.
    #[error("overloaded")]
    Overloaded {
        /// When to try again, from the drain rate.
        retry_after: Duration,
    },
    /// More than an idle server could finish before the deadline, or than the queue holds at all; not retryable.
    #[error("the call needs about {estimate:?} of an idle server, its deadline is in {deadline:?}")]
    TooLargeForDeadline {
        /// Estimated time on an idle server.
        estimate: Duration,
        /// Time left.
        deadline: Duration,
    },
    /// More rows than the queue's whole capacity.
    #[error("{rows} rows exceed the queue's capacity of {capacity}")]
    TooManyRows {
        /// Rows asked for.
        rows: usize,
        /// Rows that the queue holds.
        capacity: usize,
    },
    /// Draining: nothing new is admitted; or drained before the task was done.
    #[error("shutting down")]
    ShuttingDown,
    /// The worker has gone.
    #[error("the worker is down")]
    WorkerDown,
    /// The deadline passed before the task was done.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The reader of a token stream fell too far behind; the task was dropped.
    #[error("the stream's reader is too slow")]
    SlowReader,
    /// The backend failed or panicked on this task; the cause has been logged.
    #[error("inference failed: {0}")]
    InferenceFailed(String),
}

/// Why the warm-up failed: the engine must not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WarmUpError {
    /// A model was loaded and cannot compute.
    #[error(
        "model {model} cannot be served: in the warm-up {unit} failed: {cause}; its weights, the number format or the device \
         are at fault: download or save the checkpoint again, or try another --dtype or --device"
    )]
    ModelFailed {
        /// Its name.
        model: String,
        /// What it was to compute.
        unit: &'static str,
        /// The backend's error, or what it said when it panicked.
        cause: String,
    },
    /// The worker thread ended before the warm-up did.
    #[error("the worker thread has ended in the warm-up")]
    WorkerDown,
}
