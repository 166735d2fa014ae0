//! The worker's metrics and counters, and the moving averages from which admission control estimates costs. No other
//! file in this folder writes metrics, except `supervision`: rebuilds, and panics outside the backend.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prometheus::{Counter, Gauge, IntCounter};

use super::fault::Fault;
use crate::engine::EngineError;
use crate::engine::admission::Estimates;
use crate::engine::backend::{BackendError, DeviceUsage};
use crate::engine::features::Lookup;
use crate::engine::heartbeat::unix_seconds;
use crate::engine::moving_average::MovingAverage;
use crate::engine::scheduler::{Stage, Trigger, UnitCost};
use crate::engine::shared::{Shared, count};
use crate::task::ModelId;
use crate::telemetry::gauge_share::GaugeShare;
use crate::telemetry::logging::clipped;

const STAGES: [Stage; 2] = [Stage::Vision, Stage::Text];

/// Weight of the newest finished row in the moving averages of units and tokens per row. About the last twenty rows
/// count.
const NEWEST: f64 = 0.05;

/// Weight of the newest look-up in the moving average of the miss rate.
const NEWEST_LOOKUP: f64 = 0.05;

/// Estimates older than this are stale: load may have changed since.
const STALE: Duration = Duration::from_secs(60);

/// Counts of what a decode step contains.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepMix {
    /// Number of groups in their first step (prefill).
    pub(super) prompts: usize,
    /// Number of single sequences past their first step.
    pub(super) decoding: usize,
    /// Number of beam search groups, whether in their first step or a later one.
    pub(super) beams: usize,
    pub(super) rows: usize,
}

/// Writes the metrics and counters, and keeps moving averages for the estimates.
pub(super) struct Meter {
    shared: Arc<Shared>,
    gauges: WorkerGauges,
    evictions: u64,
    /// Number of units that a finished row took part in.
    row_units: MovingAverage,
    /// Number of tokens that a finished row processed in all its units.
    row_tokens: MovingAverage,
    /// Miss rate of the feature cache; 1.0 until images have been looked up.
    misses: MovingAverage,
    /// When a unit of each stage was last measured.
    measured: [Option<Instant>; 2],
    /// Number of backend calls that ran out of memory.
    out_of_memory: Cell<u64>,
    /// True if a backend call has lost its device.
    device_lost: Cell<bool>,
    /// Numbers of graph launches and of lost graphs that are counted. A new backend, which counts from 0, has a new meter.
    graph_launches: u64,
    lost_graphs: u64,
}

/// The metrics that several workers write: this worker's shares of sums, and the metrics with its label.
struct WorkerGauges {
    /// The worker's number, as a label.
    worker: String,
    /// Depth of the queue, by stage.
    queue_depth: [GaugeShare; 2],
    feature_bytes: GaugeShare,
    /// Unix time at which the oldest waiting task was submitted.
    oldest: Gauge,
    busy_seconds: Counter,
    graph_launches: IntCounter,
    lost_graphs: IntCounter,
}

impl WorkerGauges {
    fn new(shared: &Shared) -> Self {
        let (metrics, worker) = (&shared.metrics, shared.lifecycle.label());
        let label = &[worker.as_str()];
        let depth = |stage| metrics.queue_depth.with_label_values(&[stage_label(stage)]);
        Self {
            queue_depth: STAGES.map(|stage| GaugeShare::new(&depth(stage))),
            feature_bytes: GaugeShare::new(&metrics.cache_bytes.with_label_values(&["features"])),
            oldest: metrics.queue_oldest_enqueue_timestamp_seconds.with_label_values(label),
            busy_seconds: metrics.worker_busy_seconds_total.with_label_values(label),
            graph_launches: metrics.device_graph_launches_total.with_label_values(label),
            lost_graphs: metrics.device_graphs_lost_total.with_label_values(label),
            worker,
        }
    }
}

fn stage_label(stage: Stage) -> &'static str {
    match stage {
        Stage::Vision => "vision",
        Stage::Text => "text",
    }
}

fn trigger_label(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Full => "full",
        Trigger::Linger => "linger",
        Trigger::Idle => "idle",
        Trigger::Drain => "drain",
    }
}

impl Meter {
    /// Creates the meter. `Metrics` initialises the label values that are known in advance.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            gauges: WorkerGauges::new(&shared),
            shared,
            evictions: 0,
            row_units: MovingAverage::default(),
            row_tokens: MovingAverage::default(),
            misses: MovingAverage::starting_at(1.0),
            measured: [None; 2],
            out_of_memory: Cell::new(0),
            device_lost: Cell::new(false),
            graph_launches: 0,
            lost_graphs: 0,
        }
    }

    pub(super) fn record_submitted(&self) {
        count(&self.shared.counters.submitted, 1);
    }

    /// Counts the outcome of a task.
    pub(super) fn record_outcome(&self, error: Option<&EngineError>) {
        let counters = &self.shared.counters;
        let counter = match error {
            None => &counters.answered,
            Some(EngineError::DeadlineExceeded) => &counters.expired,
            Some(EngineError::ShuttingDown) => &counters.shut_down,
            Some(EngineError::SlowReader) => return self.record_cancelled(),
            Some(
                EngineError::Overloaded { .. }
                | EngineError::TooLargeForDeadline { .. }
                | EngineError::TooManyRows { .. }
                | EngineError::WorkerDown
                | EngineError::InferenceFailed(_),
            ) => &counters.failed,
        };
        count(counter, 1);
    }

    /// Counts a task that was cancelled because its client disconnected or read its stream too slowly.
    pub(super) fn record_cancelled(&self) {
        count(&self.shared.counters.cancelled, 1);
        self.shared.metrics.queue_cancelled_total.inc();
    }

    pub(super) fn record_lookup<M>(&mut self, lookup: &Lookup<M>) {
        let missed = if matches!(lookup, Lookup::Miss) { 1.0 } else { 0.0 };
        self.misses.add(missed, NEWEST_LOOKUP);
        let result = match lookup {
            Lookup::Hit(_) => "hit",
            Lookup::Joined => "joined",
            Lookup::Miss => "miss",
        };
        self.shared.metrics.cache_requests_total.with_label_values(&["features", result]).inc();
    }

    /// Counts a unit that begins, and records how long its new items have waited.
    pub(super) fn record_unit_start(&self, stage: Stage, trigger: Trigger, waited: &[Duration]) {
        let (stage, metrics) = (stage_label(stage), &self.shared.metrics);
        metrics.batches_total.with_label_values(&[stage, trigger_label(trigger)]).inc();
        let wait = metrics.queue_wait_seconds.with_label_values(&[stage]);
        for waited in waited {
            wait.observe(waited.as_secs_f64());
        }
    }

    /// Records a finished backend call: renews the heartbeat, and counts and logs a fault. Returns the number of
    /// faults, 0 or 1.
    pub(super) fn record_call<T>(
        &self,
        what: &str,
        items: usize,
        result: &Result<T, Fault>,
    ) -> usize {
        self.shared.heartbeat.beat();
        match result {
            Ok(_) => return 0,
            Err(Fault::Error(error)) => {
                match error {
                    BackendError::OutOfMemory(_) => {
                        self.out_of_memory.set(self.out_of_memory.get() + 1);
                        self.shared.metrics.oom_total.inc();
                    }
                    BackendError::NonFinite(_) => self.record_non_finite(),
                    BackendError::DeviceLost(_) => self.device_lost.set(true),
                    BackendError::Device(_) => {}
                }
                let worker = self.gauges.worker.as_str();
                tracing::error!(worker, unit.kind = what, unit.items = items, %error, "the backend failed");
            }
            Err(Fault::Panic(message)) => {
                self.shared.metrics.panics_total.with_label_values(&["worker"]).inc();
                tracing::error!(
                    worker = self.gauges.worker.as_str(),
                    unit.kind = what,
                    unit.items = items,
                    panic = clipped(message),
                    "the backend panicked"
                );
            }
        }
        1
    }

    /// Returns the number of backend calls that have run out of memory so far.
    pub(super) fn out_of_memory(&self) -> u64 {
        self.out_of_memory.get()
    }

    /// True if a backend call has lost its device: no later call can succeed.
    pub(super) fn device_lost(&self) -> bool {
        self.device_lost.get()
    }

    /// Counts an output with NaN or infinity.
    pub(super) fn record_non_finite(&self) {
        self.shared.metrics.non_finite_outputs_total.inc();
    }

    pub(super) fn record_vision_batch(
        &self,
        model: ModelId,
        batch: usize,
        encoded: usize,
        elapsed: Duration,
    ) {
        let counters = &self.shared.counters;
        count(&counters.vision_units, 1);
        count(&counters.images_encoded, encoded);
        self.shared.metrics.images_encoded_total.inc_by(encoded as u64);
        self.record_batch(Stage::Vision, model, batch, elapsed);
    }

    pub(super) fn record_single_pass_batch(
        &mut self,
        model: ModelId,
        rows: usize,
        tokens: f64,
        elapsed: Duration,
    ) {
        let counters = &self.shared.counters;
        count(&counters.single_pass_batches, 1);
        count(&counters.single_pass_rows, rows);
        self.record_batch(Stage::Text, model, rows, elapsed);
        for _ in 0..rows {
            self.record_finished_row(1, tokens / rows as f64);
        }
    }

    pub(super) fn record_step(&self, model: ModelId, mix: &StepMix, elapsed: Duration) {
        let counters = &self.shared.counters;
        count(&counters.steps, 1);
        count(&counters.step_rows, mix.rows);
        counters.most_step_rows.fetch_max(mix.rows as u64, Ordering::Relaxed);
        let (prompts, decoding, beams) = (mix.prompts > 0, mix.decoding > 0, mix.beams > 0);
        count(&counters.steps_with_prompt, usize::from(prompts));
        count(&counters.steps_with_decoding, usize::from(decoding));
        count(&counters.steps_with_beams, usize::from(beams));
        count(&counters.mixed_steps, usize::from(prompts && decoding && beams));
        self.record_batch(Stage::Text, model, mix.rows, elapsed);
    }

    /// Records a new token of a beam search or of a single sequence. For the first token, `gap` is the time since the call was
    /// admitted; for later tokens, it is the time since the previous token.
    pub(super) fn record_token(&self, first: bool, gap: Duration) {
        let metrics = &self.shared.metrics;
        let histogram = if first {
            &metrics.time_to_first_token_seconds
        } else {
            &metrics.inter_token_latency_seconds
        };
        histogram.observe(gap.as_secs_f64());
    }

    pub(super) fn record_generated_tokens(&self, tokens: usize) {
        self.shared.metrics.generated_tokens_total.inc_by(tokens as u64);
    }

    /// Records a row that has run its last unit.
    pub(super) fn record_finished_row(&mut self, units: usize, tokens: f64) {
        self.row_units.add(units as f64, NEWEST);
        self.row_tokens.add(tokens, NEWEST);
    }

    /// Updates the gauges of the queue depth and of the time at which the oldest waiting task was submitted. `oldest`
    /// is the age of that task.
    pub(super) fn set_queue_gauges(
        &self,
        (images, rows): (usize, usize),
        oldest: Option<Duration>,
    ) {
        for (share, depth) in self.gauges.queue_depth.iter().zip([images, rows]) {
            share.set(depth);
        }
        let since = oldest.map_or(0.0, |age| unix_seconds() - age.as_secs_f64());
        self.gauges.oldest.set(since);
    }

    pub(super) fn update_feature_metrics(&mut self, bytes: u64, evictions: u64) {
        let metrics = &self.shared.metrics;
        self.gauges.feature_bytes.set(bytes);
        let new = evictions - self.evictions;
        metrics.cache_evictions_total.with_label_values(&["features"]).inc_by(new);
        self.evictions = evictions;
    }

    /// Updates the metrics of a device with memory of its own.
    pub(super) fn update_device_metrics(&mut self, usage: Option<DeviceUsage>) {
        let Some(usage) = usage else { return };
        let (metrics, worker) = (&self.shared.metrics, self.gauges.worker.as_str());
        let bytes = [
            ("total", usage.total_bytes),
            ("allocated", usage.allocated_bytes),
            ("used", usage.used_bytes),
        ];
        for (part, bytes) in bytes {
            let bytes = bytes.try_into().unwrap_or(i64::MAX);
            metrics.device_memory_bytes.with_label_values(&[worker, part]).set(bytes);
        }
        let free = usage.kv_pages.saturating_sub(usage.kv_pages_used);
        for (state, pages) in [("used", usage.kv_pages_used), ("free", free)] {
            let pages = pages.try_into().unwrap_or(i64::MAX);
            metrics.device_kv_pages.with_label_values(&[worker, state]).set(pages);
        }
        self.gauges.graph_launches.inc_by(usage.graph_launches - self.graph_launches);
        let lost = usage.lost_graphs - self.lost_graphs;
        if lost > 0 {
            self.gauges.lost_graphs.inc_by(lost);
            tracing::warn!(
                worker,
                graphs = lost,
                "stopped using some recorded graphs of the GPU: their passes now launch each kernel separately, which is slower"
            );
        }
        (self.graph_launches, self.lost_graphs) = (usage.graph_launches, usage.lost_graphs);
    }

    /// Records that a unit of this stage has been measured.
    pub(super) fn record_measurement(&mut self, stage: Stage, now: Instant) {
        self.measured[stage as usize] = Some(now);
    }

    /// Returns the estimates that admission control uses.
    pub(super) fn estimates(
        &self,
        (image, text): (Option<f64>, Option<UnitCost>),
        now: Instant,
    ) -> Estimates {
        let old = |&at: &Instant| now.saturating_duration_since(at) > STALE;
        Estimates {
            image,
            unit_fixed: text.map(|cost| cost.fixed),
            unit_per_token: text.map(|cost| cost.per_item),
            row_units: self.row_units.value(),
            row_tokens: self.row_tokens.value(),
            image_misses: self.misses.value(),
            stale: self.measured.iter().flatten().any(old),
        }
    }

    fn record_batch(&self, stage: Stage, model: ModelId, size: usize, elapsed: Duration) {
        let (stage, metrics) = (stage_label(stage), &self.shared.metrics);
        let name = self.shared.models.get(model.0).map_or("unknown", |model| model.name.as_str());
        metrics.batch_size.with_label_values(&[stage, name]).observe(size as f64);
        metrics.stage_duration_seconds.with_label_values(&[stage]).observe(elapsed.as_secs_f64());
        self.gauges.busy_seconds.inc_by(elapsed.as_secs_f64());
    }
}
