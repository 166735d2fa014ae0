//! What the worker and every handle see of each other: flags, counters, the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::admission::Ledger;
use super::sync::AtomicBool;
use super::{Clock, EngineSettings};
use crate::task::ModelInfo;
use crate::telemetry::metrics::Metrics;

/// One engine's common state. Held by every handle, every admission and the worker.
pub(crate) struct Shared {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) models: Arc<[ModelInfo]>,
    pub(crate) settings: EngineSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
    /// Cancelled when the worker thread ends.
    ended: CancellationToken,
    /// Cancelled when nobody waits for the worker any more: it hangs.
    given_up: CancellationToken,
    /// The backend is being built anew.
    rebuilding: AtomicBool,
    /// From the end of the drain time.
    aborted: AtomicBool,
    /// Cancelled at the end of the drain time: for those who wait.
    abort: CancellationToken,
    /// The worker ends when it has nothing left.
    stopping: AtomicBool,
    started: Instant,
    /// Milliseconds after `started` of the worker's last sign of life.
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
            ledger: Ledger::new(&settings, Arc::clone(&metrics)),
            models,
            settings,
            metrics,
            clock,
            counters: Counters::default(),
            ended: CancellationToken::new(),
            given_up: CancellationToken::new(),
            rebuilding: AtomicBool::new(false),
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

    /// While the backend is built anew nothing is admitted.
    pub(crate) fn set_rebuilding(&self, rebuilding: bool) {
        self.beat();
        self.rebuilding.store(rebuilding, Ordering::Release);
        self.metrics.worker_up.set(i64::from(!rebuilding));
        let draining = self.ledger.is_draining() || self.metrics.draining.get() != 0;
        self.metrics.ready.set(i64::from(!rebuilding && !draining));
    }

    /// The worker hangs: whoever waits for it is told that it is down.
    pub(crate) fn give_up(&self) {
        self.metrics.worker_up.set(0);
        self.metrics.ready.set(0);
        self.given_up.cancel();
    }

    /// Cancelled by [`give_up`](Self::give_up).
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

    /// The worker lives. Measured on the system's clock: a hand-moved one says nothing about a hanging thread.
    pub(crate) fn beat(&self) {
        let elapsed = self.started.elapsed().as_millis();
        self.heartbeat_ms.store(elapsed.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metrics.worker_heartbeat_timestamp_seconds.set(unix_seconds());
    }

    /// The last sign of life, in milliseconds after the start.
    pub(crate) fn last_beat(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn heartbeat_age(&self) -> Duration {
        let last = Duration::from_millis(self.last_beat());
        self.started.elapsed().saturating_sub(last)
    }
}

/// Wall time, for metrics only.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What the worker has done, since the start. Written by the worker alone.
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
    pub(crate) score_units: AtomicU64,
    pub(crate) score_rows: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) step_rows: AtomicU64,
    pub(crate) steps_with_prompt: AtomicU64,
    pub(crate) steps_with_decoding: AtomicU64,
    pub(crate) steps_with_beams: AtomicU64,
    pub(crate) mixed_steps: AtomicU64,
    pub(crate) most_step_rows: AtomicU64,
}

/// What the worker has done since the start: a snapshot, cheap to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Tasks that reached the worker.
    pub submitted: u64,
    /// Tasks answered.
    pub answered: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks dropped because their client had left or read too slowly.
    pub cancelled: u64,
    /// Tasks whose deadline passed.
    pub expired: u64,
    /// Tasks ended by the end of the drain time.
    pub shut_down: u64,
    /// Images encoded.
    pub images_encoded: u64,
    /// Vision batches run.
    pub vision_units: u64,
    /// Passes of one-pass rows run.
    pub score_units: u64,
    /// One-pass rows run.
    pub score_rows: u64,
    /// Decoding steps run.
    pub steps: u64,
    /// Rows of all decoding steps: one for a group's first step, its live sequences afterwards.
    pub step_rows: u64,
    /// Steps in which a group ran its prompt (its first step).
    pub steps_with_prompt: u64,
    /// Steps in which a single sequence went on.
    pub steps_with_decoding: u64,
    /// Steps that held a beam group.
    pub steps_with_beams: u64,
    /// Steps that held a prompt, a sequence that went on, and a beam group, all three.
    pub mixed_steps: u64,
    /// Rows of the largest step.
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
            score_units: read(&self.score_units),
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
