//! State that the worker and all handles share: flags, counters, heartbeat, and the admission state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::admission::AdmissionController;
use super::sync::AtomicBool;
use super::{Clock, EngineSettings};
use crate::task::ModelInfo;
use crate::telemetry::metrics::Metrics;

/// One engine's shared state. Every handle, every admission and the worker hold it.
pub(crate) struct Shared {
    pub(crate) admission: Arc<AdmissionController>,
    pub(crate) models: Arc<[ModelInfo]>,
    pub(crate) settings: EngineSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    /// Cancelled when the worker thread ends.
    ended: CancellationToken,
    /// Cancelled when the worker is declared hung, so that nobody waits for the worker any longer.
    given_up: CancellationToken,
    /// True while the backend is being rebuilt.
    rebuilding: AtomicBool,
    /// True once the server is shutting down. Requests are still admitted until the engine drains, but a rebuilt
    /// backend does not make the engine ready again.
    leaving: AtomicBool,
    /// Set at the end of the drain time.
    aborted: AtomicBool,
    /// Cancelled at the end of the drain time, to wake up waiters.
    abort: CancellationToken,
    /// Set when the worker should end as soon as it has no tasks.
    stopping: AtomicBool,
    started: Instant,
    /// The worker's last heartbeat, in milliseconds after `started`.
    heartbeat_ms: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        models: Arc<[ModelInfo]>,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Arc<Self> {
        metrics.worker_up.set(1);
        Arc::new(Self {
            admission: AdmissionController::new(&settings, Arc::clone(&metrics)),
            models,
            settings,
            metrics,
            clock,
            counters: Counters::default(),
            ended: CancellationToken::new(),
            given_up: CancellationToken::new(),
            rebuilding: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            abort: CancellationToken::new(),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            heartbeat_ms: AtomicU64::new(0),
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }

    pub(crate) fn died(&self) {
        self.metrics.worker_up.set(0);
        self.metrics.ready.set(0);
        self.ended.cancel();
    }

    pub(crate) fn is_rebuilding(&self) -> bool {
        self.rebuilding.load(Ordering::Acquire)
    }

    /// Records whether the backend is being rebuilt. Nothing is admitted during a rebuild.
    pub(crate) fn set_rebuilding(&self, rebuilding: bool) {
        self.beat();
        self.rebuilding.store(rebuilding, Ordering::Release);
        self.metrics.worker_up.set(i64::from(!rebuilding));
        let draining = self.admission.is_draining() || self.leaving.load(Ordering::Acquire);
        self.metrics.ready.set(i64::from(!rebuilding && !draining));
    }

    /// Records that the server begins to shut down. From now on a rebuilt backend does not make the engine ready again.
    pub(crate) fn announce_shutdown(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Declares the worker hung. Every caller that waits for the worker gets `WorkerDown`.
    pub(crate) fn give_up(&self) {
        self.metrics.worker_up.set(0);
        self.metrics.ready.set(0);
        self.given_up.cancel();
    }

    /// Returns the token that [`give_up`](Self::give_up) cancels.
    pub(crate) fn given_up(&self) -> CancellationToken {
        self.given_up.clone()
    }

    /// Resolves when the worker thread has ended.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.abort.cancel();
    }

    /// Resolves at the end of the drain time.
    pub(crate) async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Records a heartbeat of the worker, on the system's clock: a clock that only tests advance cannot show that a
    /// thread hangs.
    pub(crate) fn beat(&self) {
        let elapsed = self.started.elapsed().as_millis();
        self.heartbeat_ms.store(elapsed.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metrics.worker_heartbeat_timestamp_seconds.set(unix_seconds());
    }

    /// Returns the time of the worker's last heartbeat, in milliseconds after the start.
    pub(crate) fn last_beat(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn heartbeat_age(&self) -> Duration {
        let last = Duration::from_millis(self.last_beat());
        self.started.elapsed().saturating_sub(last)
    }
}

/// Returns the wall-clock time in seconds since the Unix epoch; for metrics only.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Counts of what the worker has done since the start. Only the worker writes them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) submitted: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) shut_down: AtomicU64,
    pub(crate) images_encoded: AtomicU64,
    pub(crate) vision_units: AtomicU64,
    pub(crate) single_pass_batches: AtomicU64,
    pub(crate) score_rows: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) step_rows: AtomicU64,
    pub(crate) steps_with_prompt: AtomicU64,
    pub(crate) steps_with_decoding: AtomicU64,
    pub(crate) steps_with_beams: AtomicU64,
    pub(crate) mixed_steps: AtomicU64,
    pub(crate) most_step_rows: AtomicU64,
}

/// Counts of what the worker has done since the start, read at one moment; cheap to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Number of tasks that reached the worker.
    pub submitted: u64,
    /// Number of tasks that ended with an answer.
    pub answered: u64,
    /// Number of tasks that ended with an error other than those below.
    pub failed: u64,
    /// Number of tasks cancelled because their client disconnected or read its stream too slowly.
    pub cancelled: u64,
    /// Number of tasks that ended because their deadline passed.
    pub expired: u64,
    /// Number of tasks that ended because the drain time was over.
    pub shut_down: u64,
    /// Number of images that a vision tower encoded successfully.
    pub images_encoded: u64,
    /// Number of vision batches that were run, including failed ones.
    pub vision_units: u64,
    /// Number of batches of single-pass rows that were run.
    pub single_pass_batches: u64,
    /// Number of single-pass rows in those batches.
    pub score_rows: u64,
    /// Number of decode steps that were run, prefill included.
    pub steps: u64,
    /// Number of rows summed over all decode steps. In its first step a group counts as one row, in later steps as one
    /// row for each live sequence.
    pub step_rows: u64,
    /// Number of steps in which at least one group ran its prompt (its first step, the prefill).
    pub steps_with_prompt: u64,
    /// Number of steps in which at least one single sequence continued.
    pub steps_with_decoding: u64,
    /// Number of steps that contained a beam search group.
    pub steps_with_beams: u64,
    /// Number of steps that contained all three: a prompt, a continuing single sequence, and a beam search group.
    pub mixed_steps: u64,
    /// Number of rows in the largest step so far.
    pub most_step_rows: u64,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> EngineStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            submitted: read(&self.submitted),
            answered: read(&self.answered),
            failed: read(&self.failed),
            cancelled: read(&self.cancelled),
            expired: read(&self.expired),
            shut_down: read(&self.shut_down),
            images_encoded: read(&self.images_encoded),
            vision_units: read(&self.vision_units),
            single_pass_batches: read(&self.single_pass_batches),
            score_rows: read(&self.score_rows),
            steps: read(&self.steps),
            step_rows: read(&self.step_rows),
            steps_with_prompt: read(&self.steps_with_prompt),
            steps_with_decoding: read(&self.steps_with_decoding),
            steps_with_beams: read(&self.steps_with_beams),
            mixed_steps: read(&self.mixed_steps),
            most_step_rows: read(&self.most_step_rows),
        }
    }
}

/// Adds to a counter that only the worker writes.
pub(crate) fn count(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}
