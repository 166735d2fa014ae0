//! The lifecycle of the serving process: loading, ready, rebuilding, draining, down.
//!
//! [`Lifecycle`] holds the state, and all readers read it here. The state is changed by `app`, through the HTTP state
//! and the engine's handle (loading, shutdown), and by the worker threads (rebuilding, end), each through its
//! [`WorkerLifecycle`]. The gauges `blip_ready`, `blip_draining` and `blip_worker_up` only mirror the state:
//! [`Lifecycle::change`] sets them, and nothing reads them.
//!
//! ```text
//! Loading ──> Ready <──> Rebuilding      any phase ──> Draining   shutdown: announced, draining, aborted
//!                                        any but Loading ──> Down a worker has ended or hangs; final
//! ```
//!
//! With several workers, one for each GPU, the process is ready while at least one of them runs. It is down as soon as one
//! of them has ended or hangs: a restart of the process is the only way to get that worker back.

use std::fmt;
use std::sync::{Arc, PoisonError};

use prometheus::{IntGauge, IntGaugeVec};
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
    /// Every worker's backend failed and is being rebuilt. Nothing is admitted until one of them works again.
    Rebuilding,
    /// The process is shutting down (graceful shutdown). At first it still admits calls, so that load balancers can
    /// react. Later it only finishes the calls that it has admitted.
    Draining,
    /// A worker thread has ended or hangs. Only a restart of the process helps.
    Down,
}

/// The state of one process, shared by its HTTP side and its engine.
pub struct Lifecycle {
    state: Mutex<LifecycleState>,
    ready: IntGauge,
    draining: IntGauge,
    worker_up: IntGaugeVec,
    /// Cancelled when the first worker thread has ended.
    worker_ended: CancellationToken,
    /// Cancelled when a worker is declared hung, so that nobody waits for an answer any longer.
    worker_hung: CancellationToken,
    /// Cancelled at the beginning of the drain time.
    draining_begun: CancellationToken,
    /// Cancelled at the end of the drain time.
    aborted: CancellationToken,
}

/// One worker's part of the lifecycle. The worker thread reports its state here, and its handle reads it.
#[derive(Debug, Clone)]
pub(super) struct WorkerLifecycle {
    process: Arc<Lifecycle>,
    /// Number of the worker, from 0.
    index: usize,
}

#[derive(Debug)]
struct LifecycleState {
    /// The workers that were started, by number.
    workers: Vec<WorkerState>,
    shutdown: Shutdown,
    /// True once the models are loaded and requests can be served.
    loaded: bool,
    /// True once the workers have been asked to stop as soon as they have no tasks.
    stopping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkerState {
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
    fn phase(&self) -> Phase {
        let is_closing = self.shutdown >= Shutdown::Announced;
        if !self.loaded || self.workers.is_empty() {
            // An engine that fails or is dropped before the models are loaded is part of a failed start.
            return if is_closing { Phase::Draining } else { Phase::Loading };
        }
        let any = |state| self.workers.contains(&state);
        if any(WorkerState::Hung) || any(WorkerState::Ended) {
            Phase::Down
        } else if !any(WorkerState::Running) {
            Phase::Rebuilding
        } else if is_closing || self.stopping {
            Phase::Draining
        } else {
            Phase::Ready
        }
    }
}

impl Lifecycle {
    /// Creates the lifecycle of a process that loads its models. Its phase is `Loading` until `mark_loaded` is called.
    #[must_use]
    pub fn loading(metrics: &Metrics) -> Arc<Self> {
        Self::new(metrics, false)
    }

    /// Creates the lifecycle of an engine without a server. Its phase is `Ready` as soon as a worker has started.
    #[must_use]
    pub fn without_server(metrics: &Metrics) -> Arc<Self> {
        Self::new(metrics, true)
    }

    fn new(metrics: &Metrics, loaded: bool) -> Arc<Self> {
        let (workers, shutdown) = (Vec::new(), Shutdown::NotRequested);
        Arc::new(Self {
            state: Mutex::new(LifecycleState { workers, shutdown, loaded, stopping: false }),
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
        for (index, worker) in state.workers.iter().enumerate() {
            let is_up = *worker == WorkerState::Running;
            self.worker_up.with_label_values(&[&index.to_string()]).set(i64::from(is_up));
        }
        self.ready.set(i64::from(state.phase() == Phase::Ready));
        self.draining.set(i64::from(state.shutdown >= Shutdown::Announced));
    }

    /// Records that a further worker starts, and returns its part of the lifecycle.
    pub(super) fn add_worker(self: &Arc<Self>) -> WorkerLifecycle {
        let mut index = 0;
        self.change(|state| {
            index = state.workers.len();
            state.workers.push(WorkerState::Running);
        });
        WorkerLifecycle { process: Arc::clone(self), index }
    }

    fn advance_shutdown(&self, to: Shutdown) {
        self.change(|state| state.shutdown = state.shutdown.max(to));
    }

    /// Records that the models are loaded and requests can be served.
    pub(crate) fn mark_loaded(&self) {
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

    /// Asks the workers to end as soon as they have no tasks.
    pub(super) fn stop(&self) {
        self.change(|state| state.stopping = true);
    }

    /// Returns the current phase. `Down` takes precedence over `Rebuilding`, and both take precedence over `Draining`.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase()
    }

    /// True once the shutdown has been announced, whatever state the workers are in.
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

    /// True once the workers have been asked to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    /// Resolves at the beginning of the drain time.
    pub(super) async fn draining(&self) {
        self.draining_begun.cancelled().await;
    }

    /// Resolves when a worker thread has ended.
    pub(super) async fn ended(&self) {
        self.worker_ended.cancelled().await;
    }

    /// Resolves at the end of the drain time.
    pub(super) async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// Returns a future that resolves when a worker is declared hung.
    pub(super) fn hung(&self) -> WaitForCancellationFutureOwned {
        self.worker_hung.clone().cancelled_owned()
    }

    fn state(&self) -> MutexGuard<'_, LifecycleState> {
        // No code can panic while it holds the lock, so the state is consistent even if the lock is poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerLifecycle {
    /// The lifecycle of the process that the worker belongs to.
    pub(super) fn process(&self) -> &Lifecycle {
        &self.process
    }

    /// Number of the worker, as a label of metrics.
    pub(super) fn label(&self) -> String {
        self.index.to_string()
    }

    /// Records that the worker's backend has been rebuilt.
    pub(super) fn mark_running(&self) {
        self.change(WorkerState::Running);
    }

    /// Records that the worker's backend has failed and is being rebuilt.
    pub(super) fn mark_rebuilding(&self) {
        self.change(WorkerState::Rebuilding);
    }

    /// Declares the worker hung. Everyone who waits for an answer gets `WorkerDown`.
    pub(super) fn mark_hung(&self) {
        self.change(WorkerState::Hung);
        self.process.worker_hung.cancel();
    }

    /// Records that the worker thread ends.
    pub(super) fn mark_ended(&self) {
        self.change(WorkerState::Ended);
        self.process.worker_ended.cancel();
    }

    /// True if the worker can take a task now: it has neither ended nor hung, and its backend is not being rebuilt.
    pub(super) fn takes_tasks(&self) -> bool {
        self.state() == WorkerState::Running
    }

    /// True while the worker's backend is being rebuilt.
    pub(super) fn is_rebuilding(&self) -> bool {
        self.state() == WorkerState::Rebuilding
    }

    fn state(&self) -> WorkerState {
        self.process.state().workers[self.index]
    }

    /// Moves the worker to `next`, unless it has ended. A worker that was declared hung can only end.
    fn change(&self, next: WorkerState) {
        self.process.change(|state| {
            let worker = &mut state.workers[self.index];
            let may_follow = match *worker {
                WorkerState::Ended => false,
                WorkerState::Hung => next == WorkerState::Ended,
                WorkerState::Running | WorkerState::Rebuilding => true,
            };
            if may_follow {
                *worker = next;
            }
        });
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

    /// Returns the values of the gauges `ready`, `draining` and `worker_up` of the first worker, in this order.
    fn gauges(metrics: &Metrics) -> [i64; 3] {
        let worker_up = metrics.worker_up.with_label_values(&["0"]).get();
        [metrics.ready.get(), metrics.draining.get(), worker_up]
    }

    #[test]
    fn a_process_that_loads_serves_drains_and_ends_passes_through_the_phases() {
        let (life, metrics) = lifecycle();
        let mut seen = vec![(life.phase(), gauges(&metrics))];
        let worker = life.add_worker();
        seen.push((life.phase(), gauges(&metrics)));
        let steps: [&dyn Fn(); 6] = [
            &|| life.mark_loaded(),
            &|| worker.mark_rebuilding(),
            &|| worker.mark_running(),
            &|| life.announce_shutdown(),
            &|| life.drain(),
            &|| worker.mark_ended(),
        ];
        for step in steps {
            step();
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
    fn a_process_is_ready_while_one_of_its_workers_runs_and_down_when_one_is_lost() {
        let (life, metrics) = lifecycle();
        let [first, second] = [life.add_worker(), life.add_worker()];
        life.mark_loaded();
        assert_eq!(life.phase(), Phase::Ready);
        first.mark_rebuilding();
        assert_eq!(
            (life.phase(), first.takes_tasks(), second.takes_tasks()),
            (Phase::Ready, false, true)
        );
        second.mark_rebuilding();
        assert_eq!((life.phase(), metrics.ready.get()), (Phase::Rebuilding, 0));
        first.mark_running();
        assert_eq!((life.phase(), metrics.ready.get()), (Phase::Ready, 1));
        let up = |worker| metrics.worker_up.with_label_values(&[worker]).get();
        assert_eq!([up("0"), up("1")], [1, 0]);
        second.mark_ended();
        assert_eq!((life.phase(), first.takes_tasks()), (Phase::Down, true));
    }

    #[test]
    fn a_backend_that_is_rebuilt_during_shutdown_does_not_become_ready() {
        let (life, metrics) = lifecycle();
        let worker = life.add_worker();
        life.mark_loaded();
        worker.mark_rebuilding();
        life.announce_shutdown();
        assert_eq!((life.phase(), worker.takes_tasks()), (Phase::Rebuilding, false));
        worker.mark_running();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Draining, [0, 1, 1]));
        assert!(worker.takes_tasks(), "calls are admitted until the drain");
    }

    #[test]
    fn a_worker_that_is_down_stays_down() {
        let (life, metrics) = lifecycle();
        let worker = life.add_worker();
        life.mark_loaded();
        worker.mark_hung();
        worker.mark_running();
        worker.mark_rebuilding();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Down, [0, 0, 0]));
        worker.mark_ended();
        worker.mark_running();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Down, [0, 0, 0]));
    }

    #[test]
    fn an_engine_that_ends_before_the_models_are_loaded_looks_like_loading() {
        let (life, metrics) = lifecycle();
        let worker = life.add_worker();
        life.stop();
        worker.mark_ended();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Loading, [0, 0, 0]));
        life.announce_shutdown();
        assert_eq!((life.phase(), gauges(&metrics)), (Phase::Draining, [0, 1, 0]));
    }

    #[test]
    fn an_engine_without_a_server_drains_when_it_is_stopped() {
        let metrics = Metrics::try_new().unwrap();
        let life = Lifecycle::without_server(&metrics);
        let _worker = life.add_worker();
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
