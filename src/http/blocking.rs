//! Runs work that takes long away from the threads that serve connections: `extract` and `inference` parse large values
//! here, `reload` reads files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::ApiError;
use crate::telemetry::logging::clipped;

/// Runs `work` in the blocking thread pool of tokio, and returns its result. If the system refuses the pool its first
/// thread, tokio panics; `work` then runs on this thread, because a late answer is better than none. `action` says in the
/// log what `work` does.
///
/// # Errors
/// `internal_error` if `work` panics in the pool.
pub(crate) async fn run<T, W>(action: &'static str, work: W) -> Result<T, ApiError>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    // The threads of tokio take real time, in which a simulation could not be repeated.
    #[cfg(test)]
    if crate::platform::simulated::is_active() {
        return Ok(work());
    }
    let place = Arc::new(Mutex::new(Some(work)));
    let of_pool = Arc::clone(&place);
    // After such a panic, the job stays in the queue of the pool. Whoever comes first takes `work`.
    let job = move || take(&of_pool).map(|work| work());
    let done = match catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(job))) {
        Ok(task) => task.await,
        Err(_) => Ok(take(&place).map(|work| work())),
    };
    let result = done.map_err(|error| {
        tracing::error!(error = clipped(&error), action, "a blocking job failed");
        ApiError::internal()
    })?;
    result.ok_or_else(ApiError::internal)
}

fn take<W>(place: &Mutex<Option<W>>) -> Option<W> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::Code;

    #[tokio::test]
    async fn the_result_of_the_work_is_returned_and_a_panic_is_an_error() {
        assert_eq!(run("adding", || 1 + 1).await.ok(), Some(2));
        let failed = run("failing", || -> u8 { panic!("on purpose") }).await;
        assert_eq!(failed.map_err(|error| error.code), Err(Code::InternalError));
    }
}
