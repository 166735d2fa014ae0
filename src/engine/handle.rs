//! The engine's API for `http` and `app`: admission, state, drain. Clones share one engine. `call` has what a call that is
//! admitted can do.
//!
//! An engine has one worker for each device (data parallelism), and each worker has its own queue, admission control and
//! caches. A call is admitted to the worker with the shortest queue. When its body has been read, it moves to another one if
//! the queue of that one is shorter now ([`Admission::reserve`]), and stays there. Only the lines of a bulk request are calls
//! of their own, so one bulk request can occupy all workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{CallReservation, Estimates};
use super::shared::{EngineStats, Shared, device_of};
use super::worker_handle::WorkerHandle;
use super::{Admission, EngineError, EngineSettings, Lifecycle, Phase, WarmUpError};
use crate::fairness::ClientId;
use crate::task::{Device, ModelInfo};

/// Longest interval between two checks of the workers' heartbeats.
const LOOK: Duration = Duration::from_secs(1);

/// The API of the engine, for `http` and `app`. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    /// At least one.
    workers: Arc<[WorkerHandle]>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// Creates a handle to workers that serve the same models with the same settings.
    pub(super) fn new(first: WorkerHandle, others: Vec<WorkerHandle>) -> Self {
        Self { workers: std::iter::once(first).chain(others).collect() }
    }

    fn first(&self) -> &Shared {
        &self.workers[0].shared
    }

    /// Returns the loaded models; `ModelId(i)` is at index i. With several workers, `device` is that of the first.
    #[must_use]
    pub fn models(&self) -> &[ModelInfo] {
        &self.first().models
    }

    /// Returns the device of each worker.
    pub fn devices(&self) -> impl Iterator<Item = Device> + '_ {
        self.workers.iter().map(|worker| device_of(&worker.shared.models))
    }

    /// Returns the limits and the scheduling policy of each worker.
    #[must_use]
    pub fn settings(&self) -> &EngineSettings {
        &self.first().settings
    }

    /// Returns the costs that the first worker has measured so far, which its admission control uses.
    #[must_use]
    pub fn estimates(&self) -> Estimates {
        self.first().admission.estimates()
    }

    /// Returns counts of what the workers have done so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.first().counters.snapshot()
    }

    /// Returns the number of rows that are reserved for calls and tasks in progress.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.workers.iter().map(|worker| worker.shared.admission.rows()).sum()
    }

    /// Returns the time since the last heartbeat of the worker whose heartbeat is the oldest. It is at most about a
    /// second when that worker is idle, and at most the time of one work unit when it is busy.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        let ages = self.workers.iter().map(|worker| worker.shared.heartbeat.age());
        ages.max().unwrap_or_default()
    }

    /// Returns the current phase of the process, as the engine sees it. The phase is also `Down` if a worker has had no
    /// heartbeat for `worker_hang_limit` (ten times that during a rebuild); [`lost`](Self::lost) later confirms that the
    /// worker is hung.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let overdue = self.workers.iter().any(WorkerHandle::is_overdue);
        if overdue { Phase::Down } else { self.lifecycle().phase() }
    }

    /// Runs one small work unit of each kind on every worker, so that admission control has cost estimates before the
    /// first request. Call this before any request. The warm-up does not show in metrics or statistics.
    ///
    /// # Errors
    /// `ModelFailed` if a unit fails or returns non-finite numbers; `WorkerDown` if a worker ends before or during the
    /// warm-up.
    pub async fn warm_up(&self) -> Result<(), WarmUpError> {
        let warming = self.workers.iter().map(WorkerHandle::warm_up);
        futures_util::future::try_join_all(warming).await.map(drop)
    }

    /// Admits a call of `client` that must be answered by `deadline`, if one row and `bytes` (the declared body length)
    /// would fit now. This is the first step of admission control; it reserves nothing yet.
    ///
    /// # Errors
    /// `Overloaded`, `DeadlineExceeded`, `ShuttingDown`, `WorkerDown`.
    pub fn admit(
        &self,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Admission, EngineError> {
        let admitted = self.first().clock.now();
        let left = deadline.saturating_duration_since(admitted);
        let accepts = |worker: &Shared| worker.admission.would_admit(client, bytes, left);
        let worker = self.shortest_queue(false, accepts).ok_or(EngineError::WorkerDown)?;
        let reservation = worker.shared.admission.admit(client, bytes, deadline, admitted)?;
        Ok(self.admission(worker, reservation, admitted, deadline))
    }

    /// Admits a call of the client's bulk work. It reserves nothing yet, and is not rejected when the engine is busy.
    ///
    /// # Errors
    /// `ShuttingDown`, `WorkerDown`.
    pub fn admit_bulk(
        &self,
        client: ClientId,
        deadline: Instant,
    ) -> Result<Admission, EngineError> {
        let worker = self.shortest_queue(true, |_| true).ok_or(EngineError::WorkerDown)?;
        let admitted = worker.shared.clock.now();
        let reservation = worker.shared.admission.admit_bulk(client)?;
        Ok(self.admission(worker, reservation, admitted, deadline))
    }

    pub(super) fn admission(
        &self,
        worker: &WorkerHandle,
        reservation: CallReservation,
        admitted: Instant,
        deadline: Instant,
    ) -> Admission {
        let (engine, worker) = (self.clone(), worker.clone());
        Admission { engine, worker, reservation, admitted, deadline, is_placed: false }
    }

    /// Returns the worker with the shortest queue, among those that take tasks. Prefers workers that accept the call and,
    /// among these, workers whose units have not failed recently.
    pub(super) fn shortest_queue(
        &self,
        is_bulk: bool,
        accepts: impl Fn(&Shared) -> bool,
    ) -> Option<&WorkerHandle> {
        let mut takers = self.workers.iter().filter(|worker| worker.shared.lifecycle.takes_tasks());
        if self.workers.len() == 1 {
            // There is nothing to choose. The worker's own check decides.
            return takers.next();
        }
        takers.min_by_key(|worker| {
            let worker = &*worker.shared;
            let backs_off = worker.failure_backoff.is_active(worker.clock.now());
            (!accepts(worker), backs_off, worker.admission.queue_length(is_bulk))
        })
    }

    /// Returns the worker with the fewest interactive rows, with the same preferences as
    /// [`shortest_queue`](Self::shortest_queue); `None` if no worker is better than `current`.
    pub(super) fn shorter_queue(
        &self,
        current: &WorkerHandle,
        accepts: impl Fn(&Shared) -> bool,
    ) -> Option<&WorkerHandle> {
        if self.workers.len() == 1 {
            return None;
        }
        let rank = |worker: &WorkerHandle| {
            let worker = &*worker.shared;
            let backs_off = worker.failure_backoff.is_active(worker.clock.now());
            let is_closed = !worker.lifecycle.takes_tasks();
            (is_closed, !accepts(worker), backs_off, worker.admission.interactive_rows())
        };
        // Other threads change the ranks meanwhile, so the current worker is left out: it could seem better than itself.
        let own = rank(current);
        let is_other = |worker: &&WorkerHandle| !Arc::ptr_eq(&worker.shared, &current.shared);
        let ranked = self.workers.iter().filter(is_other).map(|worker| (rank(worker), worker));
        let (best, worker) = ranked.min_by_key(|&(rank, _)| rank)?;
        (best < own).then_some(worker)
    }

    /// Starts draining: new calls are rejected, admitted calls continue.
    pub fn drain(&self) {
        self.close();
        self.wake();
    }

    /// Resolves when the engine drains: it admits no new calls from now on.
    pub async fn draining(&self) {
        self.lifecycle().draining().await;
    }

    /// Resolves when a worker thread has ended, for any reason.
    pub async fn ended(&self) {
        self.lifecycle().ended().await;
    }

    /// Resolves when a worker can never answer again because its thread has ended or hangs. Replies that are still
    /// awaited then resolve to `WorkerDown`. Nothing else detects a hanging worker, so some task must await this
    /// function.
    pub async fn lost(&self) {
        let look = (self.settings().worker_hang_limit / 4).min(LOOK);
        // After the process was suspended (SIGSTOP), the last heartbeat looks old even if the worker is healthy. So the
        // worker gets one more interval to renew the heartbeat.
        let mut suspected = vec![None; self.workers.len()];
        loop {
            tokio::select! {
                biased;
                () = self.lifecycle().ended() => return,
                () = tokio::time::sleep(look) => {}
            }
            for (worker, suspected) in self.workers.iter().zip(&mut suspected) {
                let beat = worker.is_overdue().then(|| worker.shared.heartbeat.last());
                if beat.is_some() && beat == *suspected {
                    worker.shared.lifecycle.mark_hung();
                    return;
                }
                *suspected = beat;
            }
        }
    }

    /// Resolves when no call can be answered any more. The result is `ShuttingDown` at the end of the drain time, or
    /// `WorkerDown` if a worker has ended or hangs.
    pub async fn closed(&self) -> EngineError {
        let lifecycle = self.lifecycle();
        tokio::select! {
            biased;
            () = lifecycle.aborted() => EngineError::ShuttingDown,
            () = lifecycle.ended() => EngineError::WorkerDown,
            () = lifecycle.hung() => EngineError::WorkerDown,
        }
    }

    /// Resolves when all admitted calls have ended and released their reservations. Call it after
    /// [`drain`](Self::drain) or [`abort`](Self::abort).
    pub async fn drained(&self) {
        let admissions = || self.workers.iter().map(|worker| &worker.shared.admission);
        // While the last worker's calls end, a bulk request may still submit a line to the first. It ends after its
        // lines. So once no worker has a call, no further call can begin.
        // A call may move to another worker once, from one that is checked later to one that has been checked. So all are
        // checked twice.
        while !(0..2).all(|_| admissions().all(|admission| admission.is_empty())) {
            for admission in admissions() {
                admission.emptied().await;
            }
        }
    }

    /// Ends the drain time: stops admission, and ends every waiting or running task with `ShuttingDown`. A work unit
    /// in progress completes first.
    pub fn abort(&self) {
        self.close();
        self.lifecycle().abort();
        self.wake();
    }

    /// Admits no more calls, and asks the workers to end when they have no tasks left.
    pub(super) fn stop(&self) {
        self.workers.iter().for_each(|worker| worker.shared.admission.close());
        self.lifecycle().stop();
        self.wake();
    }

    /// Admits no more calls. Admitted calls continue.
    fn close(&self) {
        self.lifecycle().drain();
        self.workers.iter().for_each(|worker| worker.shared.admission.close());
    }

    fn wake(&self) {
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    pub(super) fn lifecycle(&self) -> &Lifecycle {
        self.first().lifecycle.process()
    }
}
