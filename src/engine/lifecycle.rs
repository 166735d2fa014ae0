//! The lifecycle of the serving process: loading, ready, rebuilding, draining, down.
//!
//! [`Lifecycle`] holds the state, and all readers read it here. The state is changed by `app`, through the HTTP state
//! and the engine's handle (loading, shutdown), and by the worker thread (rebuilding, end). The gauges `blip_ready`,
//! `blip_draining` and `blip_worker_up` only mirror the state: [`Lifecycle::change`] sets them, and nothing reads them.
//!
//! ```text
//! Loading ──> Ready <──> Rebuilding      any phase ──> Draining   shutdown: announced, draining, aborted
//!                                        any but Loading ──> Down the worker has ended or hangs; final
//! ```

use std::fmt;
use std::sync::{Arc, PoisonError};

use prometheus::IntGauge;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::sync::{Mutex, MutexGuard};
use crate::telemetry::metrics::Metrics;

/// What the process does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The models are not loaded yet. Nothing is admitted.
    Loading,
    /// Calls are admitted and answered.
    Ready,
    /// The backend failed and is being rebuilt. Nothing is admitted until it works again.
    Rebuilding,
    /// The process is shutting down (graceful shutdown). At first it still admits calls, so that load balancers can
    /// react. Later it only finishes the calls that it has admitted.
    Draining,
    /// The worker thread has ended or hangs. Only a restart of the process helps.
    Down,
}

/// The state of one process, shared by its HTTP side and its engine.
pub struct Lifecycle {
    state: Mutex<LifecycleState>,
    ready: IntGauge,
    draining: IntGauge,
    worker_up: IntGauge,
    /// Cancelled when the worker thread has ended.
    worker_ended: CancellationToken,
    /// Cancelled when the worker is declared hung, so that nobody waits for it any longer.
    worker_hung: CancellationToken,
    /// Cancelled at the beginning of the drain time.
    draining_begun: CancellationToken,
    /// Cancelled at the end of the drain time.
    aborted: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct LifecycleState {
    worker: WorkerState,
    shutdown: Shutdown,
    /// True once the models are loaded and requests can be served.
    loaded: bool,
    /// True once the worker has been asked to stop as soon as it has no tasks.
    stopping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerState {
    NotStarted,
    Running,
    Rebuilding,
    Hung,
    Ended,
}

/// How far the shutdown has got. It only ever advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shutdown {
    NotRequested,
    /// The process reports that it is not ready, but still admits calls, so that load balancers can react first.
    Announced,
    /// No call is admitted any more; admitted calls are finished.
    Draining,
    /// The drain time is over. The remaining calls end with an error.
    Aborted,
}

impl LifecycleState {
    fn phase(self) -> Phase {
        let is_closing = self.shutdown >= Shutdown::Announced;
        if !self.loaded {
            // An engine that fails or is dropped before the models are loaded is part of a failed start.
            return if is_closing { Phase::Draining } else { Phase::Loading };
        }
        match self.worker {
            WorkerState::Hung | WorkerState::Ended => Phase::Down,
            WorkerState::Rebuilding => Phase::Rebuilding,
            WorkerState::NotStarted | WorkerState::Running if is_closing || self.stopping => {
                Phase::Draining
            }
            WorkerState::Running => Phase::Ready,
            WorkerState::NotStarted => Phase::Loading,
        }
    }
}

impl Lifecycle {
    /// Creates the lifecycle of a process that loads its models. Its phase is `Loading` until `loaded` is called.
    #[must_use]
    pub fn loading(metrics: &Metrics) -> Arc<Self> {
        Self::new(metrics, false)
    }

    /// Creates the lifecycle of an engine without a server. Its phase is `Ready` as soon as the worker has started.
    #[must_use]
    pub fn without_server(metrics: &Metrics) -> Arc<Self> {
        Self::new(metrics, true)
    }

    fn new(metrics: &Metrics, loaded: bool) -> Arc<Self> {
        let worker = WorkerState::NotStarted;
        let shutdown = Shutdown::NotRequested;
        Arc::new(Self {
            state: Mutex::new(LifecycleState { worker, shutdown, loaded, stopping: false }),
            ready: metrics.ready.clone(),
            draining: metrics.draining.clone(),
            worker_up: metrics.worker_up.clone(),
            worker_ended: CancellationToken::new(),
            worker_hung: CancellationToken::new(),
            draining_begun: CancellationToken::new(),
            aborted: CancellationToken::new(),
        })
    }

    /// Changes the state and sets the gauges to match, under one lock, so that the gauges never disagree with each
    /// other.
    fn change(&self, change: impl FnOnce(&mut LifecycleState)) {
        let mut state = self.state();
        change(&mut state);
        let worker_up = state.worker == WorkerState::Running;
        self.worker_up.set(i64::from(worker_up));
        self.ready.set(i64::from(state.phase() == Phase::Ready));
        self.draining.set(i64::from(state.shutdown >= Shutdown::Announced));
    }

    /// Moves the worker to `next`, unless it has ended. A worker that was declared hung can only end.
    fn change_worker(&self, next: WorkerState) {
        self.change(|state| {
            let may_follow = match state.worker {
                WorkerState::Ended => false,
                WorkerState::Hung => next == WorkerState::Ended,
                WorkerState::NotStarted | WorkerState::Running | WorkerState::Rebuilding => true,
            };
            if may_follow {
                state.worker = next;
            }
        });
    }

    fn advance_shutdown(&self, to: Shutdown) {
        self.change(|state| state.shutdown = state.shutdown.max(to));
    }

    /// Records that the models are loaded and requests can be served.
    pub(crate) fn loaded(&self) {
        self.change(|state| state.loaded = true);
    }

    /// Records that the process will soon shut down. From now on the process reports that it is not ready, but still
    /// admits calls.
    pub(crate) fn announce_shutdown(&self) {
        self.advance_shutdown(Shutdown::Announced);
    }

    /// Records that no call is admitted any more.
    pub(super) fn drain(&self) {
        self.advance_shutdown(Shutdown::Draining);
        self.draining_begun.cancel();
    }

    /// Records the end of the drain time, and wakes all waiters.
    pub(super) fn abort(&self) {
        self.advance_shutdown(Shutdown::Aborted);
        self.aborted.cancel();
    }

    /// Asks the worker to end as soon as it has no tasks.
    pub(super) fn stop(&self) {
        self.change(|state| state.stopping = true);
    }

    /// Records that the worker thread runs, or that its backend has been rebuilt.
    pub(super) fn worker_runs(&self) {
        self.change_worker(WorkerState::Running);
    }

    /// Records that the backend has failed and is being rebuilt.
    pub(super) fn worker_rebuilds(&self) {
        self.change_worker(WorkerState::Rebuilding);
    }

    /// Declares the worker hung. Everybody who waits for the worker gets `WorkerDown`.
    pub(super) fn worker_hangs(&self) {
        self.change_worker(WorkerState::Hung);
        self.worker_hung.cancel();
    }

    /// Records that the worker thread ends.
    pub(super) fn worker_ends(&self) {
        self.change_worker(WorkerState::Ended);
        self.worker_ended.cancel();
    }

    /// Returns the current phase. `Down` takes precedence over `Rebuilding`, and both take precedence over `Draining`.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase()
    }

    /// True once the shutdown has been announced, whatever state the worker is in.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.state().shutdown >= Shutdown::Announced
    }

    /// True from the beginning of the drain, or of the stop of an engine, on: no call is admitted, or none will be from
    /// the next moment on.
    pub(super) fn is_draining(&self) -> bool {
        let state = self.state();
        state.shutdown >= Shutdown::Draining || state.stopping
    }

    /// True once the drain time is over.
    pub(super) fn is_aborted(&self) -> bool {
        self.state().shutdown == Shutdown::Aborted
    }

    /// True once the worker has been asked to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    /// True if the worker can take a task now: it has neither ended nor hung, and its backend is not being rebuilt.
    pub(super) fn worker_takes_tasks(&self) -> bool {
        matches!(self.state().worker, WorkerState::NotStarted | WorkerState::Running)
    }

    /// Resolves at the beginning of the drain time.
    pub(super) async fn draining(&self) {
        self.draining_begun.cancelled().await;
    }

    /// Resolves when the worker thread has ended.
    pub(super) async fn ended(&self) {
        self.worker_ended.cancelled().await;
    }

    /// Resolves at the end of the drain time.
    pub(super) async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// Returns a future that resolves when the worker is declared hung.
    pub(super) fn hung(&self) -> WaitForCancellationFutureOwned {
        self.worker_hung.clone().cancelled_owned()
    }

    fn state(&self) -> MutexGuard<'_, LifecycleState> {
        // No code can panic while it holds the lock, so the state is consistent even if the lock is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifecycle").field("state", &*self.state()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifecycle() -> (Arc<Lifecycle>, Metrics) {
        let metrics = Metrics::try_new().unwrap();
        (Lifecycle::loading(&metrics), metrics)
    }

    /// Returns the values of the gauges `ready`, `draining` and `worker_up`, in this order.
    fn gauges(metrics: &Metrics) -> [i64; 3] {
        [metrics.ready.get(), metrics.draining.get(), metrics.worker_up.get()]
    }

    #[test]
    fn a_process_that_loads_serves_drains_and_ends_passes_through_the_phases() {
        let (life, metrics) = lifecycle();
        let mut seen = vec![(life.phase(), gauges(&metrics))];
        let steps: [fn(&Lifecycle); 7] = [
            Lifecycle::worker_runs,
            Lifecycle::loaded,
            Lifecycle::worker_rebuilds,
            Lifecycle::worker_runs,
            Lifecycle::announce_shutdown,
            Lifecycle::drain,
            Lifecycle::worker_ends,
        ];
        for step in steps {
            step(&life);
            seen.push((life.phase(), gauges(&metrics)));
        }
        let expected = [
            (Phase::Loading, [0, 0, 0]),
            (Phase::Loading, [0, 0, 1]),
            (Phase::Ready, [1, 0, 1]),
            (Phase::Rebuilding, [0, 0, 0]),
            (Phase::Ready, [1, 0, 1]),
            (Phase::Draining, [0, 1, 1]),
            (Phase::Draining, [0, 1, 1]),
            (Phase::Down, [0, 1, 0]),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_backend_that_is_rebuilt_during_shutdown_does_not_become_ready() {
        let (life, metrics) = lifecycle();
        life.worker_runs();
        life.loaded();
        life.worker_rebuilds();
        life.announce_shutdown();
        assert_eq!((life.phase(), life.worker_takes_tasks()), (Phase::Rebuilding, false));
        life.worker_runs();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Draining, [0, 1, 1]));
        assert!(life.worker_takes_tasks(), "calls are admitted until the drain");
    }

    #[test]
    fn a_worker_that_is_down_stays_down() {
        let (life, metrics) = lifecycle();
        life.worker_runs();
        life.loaded();
        life.worker_hangs();
        life.worker_runs();
        life.worker_rebuilds();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Down, [0, 0, 0]));
        life.worker_ends();
        life.worker_runs();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Down, [0, 0, 0]));
    }

    #[test]
    fn an_engine_that_ends_before_the_models_are_loaded_looks_like_loading() {
        let (life, metrics) = lifecycle();
        life.worker_runs();
        life.stop();
        life.worker_ends();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Loading, [0, 0, 0]));
        life.announce_shutdown();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Draining, [0, 1, 0]));
    }

    #[test]
    fn an_engine_without_a_server_drains_when_it_is_stopped() {
        let metrics = Metrics::try_new().unwrap();
        let life = Lifecycle::without_server(&metrics);
        life.worker_runs();
        assert_eq!(life.phase(), Phase::Ready);
        life.stop();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Draining, [0, 0, 1]));
        assert!(life.is_draining() && !life.is_shutting_down());
    }

    #[test]
    fn a_shutdown_only_advances() {
        let (life, _) = lifecycle();
        life.abort();
        life.announce_shutdown();
        life.drain();
        assert!(life.is_aborted() && life.is_draining() && life.is_shutting_down());
    }
}
