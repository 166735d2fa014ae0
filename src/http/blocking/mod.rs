//! Runs work that takes long away from the threads that serve connections.
//!
//! - [`Jobs`]: the jobs of calls, such as parsing a large body or tokenising. Few run at the same time, and clients take
//!   turns.
//! - [`run`]: other work, such as reading files for `reload`.

mod gate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use self::gate::Gate;
use super::error::ApiError;
use crate::engine::Admission;
use crate::telemetry::logging::clipped;

/// Bounds of the number of jobs of calls that run at the same time. Two, so that a long job does not hold up all short
/// ones; sixteen, because each takes a thread of tokio's pool.
const JOBS: (usize, usize) = (2, 16);

/// Runs the jobs of calls in the blocking thread pool. Clones share the limit on their number, which is half the cores.
#[derive(Clone)]
pub(crate) struct Jobs(Gate);

/// Whether a job must stop, because nobody waits for its result any more.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// True if the job must stop. Its result does not matter then.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets the flag when the future that waits for the job is dropped.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Jobs {
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self(Gate::new((cores / 2).clamp(JOBS.0, JOBS.1)))
    }

    /// Runs `work` when it is the turn of the call's client. The job holds the reservation of the call, so what it uses
    /// stays counted if the client disconnects. A job that lasts long should ask its [`Stop`] between pieces.
    ///
    /// # Errors
    /// `internal_error` if `work` panics.
    pub(crate) async fn run<T, W>(
        &self,
        admission: &Admission,
        action: &'static str,
        work: W,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&Stop) -> T + Send + 'static,
    {
        let permit = self.0.permit(admission.call()).await;
        let hold = admission.hold();
        let stop = StopOnDrop(Stop::default());
        let flag = stop.0.clone();
        let job = move || {
            let result = (!flag.is_set()).then(|| work(&flag));
            drop((permit, hold));
            result
        };
        run(action, job).await?.ok_or_else(ApiError::internal)
    }
}

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
    use std::sync::mpsc::channel;

    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use crate::engine::EngineSettings;
    use crate::engine::testing::bench::Bench;
    use crate::http::error::Code;

    #[tokio::test]
    async fn a_job_whose_caller_has_left_is_stopped_and_holds_its_reservation_until_then() {
        let bench = Bench::start(EngineSettings::default());
        let mut admission = bench.admit(1);
        admission.reserve_bytes(10).unwrap();
        let jobs = Jobs(Gate::new(1));
        let (began, begins) = oneshot::channel();
        let (go_on, waits) = channel::<()>();
        let (ended, ends) = oneshot::channel();
        let work = move |stop: &Stop| {
            let _ = began.send(stop.is_set());
            let _ = waits.recv();
            let _ = ended.send(stop.is_set());
        };
        {
            let mut job = Box::pin(jobs.run(&admission, "waiting", work));
            tokio::select! {
                biased;
                _ = &mut job => panic!("the job waits"),
                stopped = begins => assert_eq!(stopped, Ok(false)),
            }
        }
        drop(admission);
        assert_eq!(bench.metrics.queue_bytes.get(), 10, "the job still runs");
        let other = bench.admit(1);
        let mut next = Box::pin(jobs.run(&other, "being next", |_| 7));
        assert!((&mut next).now_or_never().is_none(), "only one job runs at a time");
        go_on.send(()).unwrap();
        assert_eq!(ends.await, Ok(true));
        assert_eq!(next.await.ok(), Some(7));
        drop(other);
        assert_eq!(bench.metrics.queue_bytes.get(), 0);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_and_gives_its_permit_back() {
        let bench = Bench::start(EngineSettings::default());
        let (admission, jobs) = (bench.admit(1), Jobs(Gate::new(1)));
        let failed = jobs.run(&admission, "failing", |_| -> u8 { panic!("on purpose") }).await;
        assert_eq!(failed.map_err(|error| error.code), Err(Code::InternalError));
        assert_eq!(jobs.run(&admission, "working", |_| 3).await.ok(), Some(3));
    }

    #[tokio::test]
    async fn the_result_of_the_work_is_returned_and_a_panic_is_an_error() {
        assert_eq!(run("adding", || 1 + 1).await.ok(), Some(2));
        let failed = run("failing", || -> u8 { panic!("on purpose") }).await;
        assert_eq!(failed.map_err(|error| error.code), Err(Code::InternalError));
    }
}
