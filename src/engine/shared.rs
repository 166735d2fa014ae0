//! State that one worker and all handles share: admission control, lifecycle, heartbeat, recent failures. The counters are
//! shared by all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::admission::AdmissionController;
use super::failure_backoff::FailureBackoff;
use super::heartbeat::Heartbeat;
use super::ids::CallNumbers;
use super::lifecycle::WorkerLifecycle;
use super::{Clock, EngineContext, EngineSettings};
use crate::task::{Device, ModelInfo};
use crate::telemetry::metrics::Metrics;

/// One worker's shared state. Every handle, every admission and the worker hold it.
pub(crate) struct Shared {
    pub(crate) admission: Arc<AdmissionController>,
    pub(crate) models: Arc<[ModelInfo]>,
    pub(crate) settings: EngineSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) lifecycle: WorkerLifecycle,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) failure_backoff: FailureBackoff,
    /// Counts of all workers.
    pub(crate) counters: Arc<Counters>,
}

/// What the workers of one engine share.
#[derive(Clone, Default)]
pub(crate) struct Common {
    pub(crate) numbers: CallNumbers,
    pub(crate) counters: Arc<Counters>,
}

impl Shared {
    pub(crate) fn new(
        models: Arc<[ModelInfo]>,
        settings: EngineSettings,
        context: EngineContext,
        common: Common,
    ) -> Arc<Self> {
        let EngineContext { metrics, lifecycle, clock } = context;
        let lifecycle = lifecycle.add_worker();
        let settings = settings.on(device_of(&models));
        let worker = lifecycle.label();
        metrics.worker_restarts_total.with_label_values(&[&worker]);
        let timestamp = metrics.worker_heartbeat_timestamp_seconds.with_label_values(&[&worker]);
        Arc::new(Self {
            admission: AdmissionController::new(&settings, Arc::clone(&metrics), common.numbers),
            models,
            settings,
            heartbeat: Heartbeat::new(timestamp),
            metrics,
            clock,
            lifecycle,
            failure_backoff: FailureBackoff::new(),
            counters: common.counters,
        })
    }

    /// True once the drain time is over.
    pub(crate) fn is_aborted(&self) -> bool {
        self.lifecycle.process().is_aborted()
    }

    /// True once no call is admitted any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.lifecycle.process().is_draining()
    }

    /// True once the worker has been asked to stop when it has no tasks left.
    pub(crate) fn is_stopping(&self) -> bool {
        self.lifecycle.process().is_stopping()
    }
}

/// Returns the device that runs the models of one worker.
pub(super) fn device_of(models: &[ModelInfo]) -> Device {
    models.first().map_or(Device::Cpu, |info| info.device)
}

/// Counts of what the workers have done since startup. Only workers write them.
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
    pub(crate) single_pass_rows: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) step_rows: AtomicU64,
    pub(crate) steps_with_prompt: AtomicU64,
    pub(crate) steps_with_decoding: AtomicU64,
    pub(crate) steps_with_beams: AtomicU64,
    pub(crate) mixed_steps: AtomicU64,
    pub(crate) most_step_rows: AtomicU64,
}

/// A snapshot of what the workers have done since startup; cheap to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Number of tasks that reached a worker.
    pub submitted: u64,
    /// Number of tasks that ended with an answer.
    pub answered: u64,
    /// Number of tasks that ended with an error and do not count as cancelled, expired or shut down.
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
    pub single_pass_rows: u64,
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
            single_pass_rows: read(&self.single_pass_rows),
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

/// Adds to a counter that only workers write.
pub(crate) fn count(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}
