//! All Prometheus metrics of the process in one struct. The doc comment of a field is its HELP text.
//!
//! Label values come from closed sets only (routes, methods, configured model names, our own codes), never from client
//! input. Counters whose labels are known in advance start at 0. Gauges that count things in progress are changed
//! through [`GaugeGuard`], which always lowers them again.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::log_queue::dropped_lines;
use super::process::ProcessCollector;

/// A kind of metric that is built from a name, help text, labels and buckets. The macro `metrics` calls `build` for
/// each field.
trait Metric: Sized + Collector + Clone + 'static {
    fn build(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! metric_kinds {
    ($($kind:ty => |$opts:ident, $labels:ident, $buckets:ident| $build:expr;)*) => {$(
        impl Metric for $kind {
            fn build(name: &str, help: &str, $labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> {
                let $opts = Opts::new(name, help);
                $build
            }
        }
    )*};
}

metric_kinds! {
    IntCounter => |opts, _labels, _buckets| Self::with_opts(opts);
    IntCounterVec => |opts, labels, _buckets| Self::new(opts, labels);
    IntGauge => |opts, _labels, _buckets| Self::with_opts(opts);
    IntGaugeVec => |opts, labels, _buckets| Self::new(opts, labels);
    CounterVec => |opts, labels, _buckets| Self::new(opts, labels);
    GaugeVec => |opts, labels, _buckets| Self::new(opts, labels);
    Histogram => |opts, _labels, buckets| Self::with_opts(HistogramOpts::from(opts).buckets(buckets.to_vec()));
    HistogramVec => |opts, labels, buckets| Self::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels);
}

/// Declares the struct and its constructor. A field is declared as `/// HELP` and `field: Kind [labels] {buckets}`; its
/// metric is named `blip_` followed by the field's name.
macro_rules! metrics {
    ($(#[$outer:meta])* pub struct $name:ident { $($(#[doc = $help:literal])+ $field:ident: $kind:ty $([$($label:literal),*])? $({$buckets:expr})?,)* }) => {
        $(#[$outer])*
        pub struct $name {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)*
        }

        impl $name {
            /// Creates a registry with all metrics, including `process_*` and `blip_log_lines_dropped_total`.
            ///
            /// # Errors
            /// When a metric's declaration is invalid for Prometheus.
            pub fn try_new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(let $field = {
                    let help = concat!($($help),+).trim();
                    let labels: &[&str] = &[$($($label),*)?];
                    let buckets: &[f64] = metrics!(@buckets $($buckets)?);
                    let metric = <$kind as Metric>::build(concat!("blip_", stringify!($field)), help, labels, buckets)?;
                    registry.register(Box::new(metric.clone()))?;
                    metric
                };)*
                registry.register(Box::new(ProcessCollector::try_new()?))?;
                registry.register(Box::new(dropped_lines()))?;
                let metrics = Self { registry, $($field,)* };
                metrics.initialise();
                Ok(metrics)
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

/// Buckets in seconds, from cached answers (about 1 ms) to beam searches on a CPU (many seconds). The default deadline
/// is 30 s.
const REQUEST_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets in seconds, from tokenising (tens of microseconds) to a vision batch (seconds).
const STAGE_SECONDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets from 1 KiB to 64 MiB in powers of four. The default body limit is 32 MiB.
const BODY_BYTES: &[f64] = &[
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// Buckets in powers of two up to the size of the largest work unit, which is `max_batch_rows` (256 by default).
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Buckets in powers of two, up to the 512 tokens that a model accepts.
const PROMPT_TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Buckets from the size of a thumbnail to the default limit of 50 megapixels.
const PIXELS: &[f64] = &[1e4, 5e4, 1e5, 3e5, 1e6, 3e6, 1e7, 2.5e7, 5e7];

metrics! {
    /// The metrics of the process. All parts of the server share one value in an `Arc`.
    pub struct Metrics {
        /// Requests answered, by matched route, method, status and error code ("ok" if none).
        http_requests_total: IntCounterVec ["route", "method", "status", "code"],
        /// Time from a request's arrival until its response's last byte is handed to the connection.
        http_request_duration_seconds: HistogramVec ["route"] {REQUEST_SECONDS},
        /// Requests that are being answered.
        http_requests_in_flight: IntGauge,
        /// Size of request bodies in bytes.
        http_request_body_bytes: Histogram {BODY_BYTES},
        /// Rejected or failed requests, by error code.
        request_failures_total: IntCounterVec ["reason"],
        /// Requests cut off without an answer at the drain timeout of a shutdown.
        http_requests_cut_total: IntCounter,
        /// Open connections, including those of the operations listener.
        http_connections: IntGauge,
        /// Connections closed because the listener was full (idle: replaced by a new one; newcomer: rejected).
        http_connections_shed_total: IntCounterVec ["connection"],
        /// Connections that ended before their TLS handshake was complete.
        tls_handshake_failures_total: IntCounter,
        /// Reloads of changed files, by kind (keys, certificate) and result (ok, failed).
        file_reloads_total: IntCounterVec ["files", "result"],
        /// Bulk requests that have a turn: the server reads their lines.
        bulk_requests: IntGauge,
        /// Bulk requests that wait for their turn.
        bulk_requests_waiting: IntGauge,
        /// Lines of bulk requests that are worked on or wait for the worker.
        bulk_lines_in_flight: IntGauge,
        /// Lines of bulk requests that were answered, by error code ("ok" if none).
        bulk_lines_total: IntCounterVec ["code"],
        /// Bytes of answers of bulk requests that wait for their clients to read.
        bulk_held_bytes: IntGauge,
        /// Items waiting for the worker, by stage (vision: images; text: rows).
        queue_depth: IntGaugeVec ["stage"],
        /// Maximum number of rows admitted at a time, summed over the workers.
        queue_capacity: IntGauge,
        /// Rows admitted and not yet answered, summed over the workers.
        queue_rows: IntGauge,
        /// Bytes reserved by admitted requests for bodies and prepared pixels, summed over the workers.
        queue_bytes: IntGauge,
        /// Time from an item's submission to the start of its work, by stage.
        queue_wait_seconds: HistogramVec ["stage"] {REQUEST_SECONDS},
        /// Unix time at which the oldest waiting task of each worker was submitted; 0 if none waits.
        queue_oldest_enqueue_timestamp_seconds: GaugeVec ["worker"],
        /// Requests rejected before any work was done, by reason (full, deadline, draining, memory).
        queue_rejected_total: IntCounterVec ["reason"],
        /// Tasks cancelled because their client disconnected or read too slowly.
        queue_cancelled_total: IntCounter,
        /// Images per vision batch and rows per text step, by stage and model.
        batch_size: HistogramVec ["stage", "model"] {BATCH_SIZES},
        /// Work units run, by stage and trigger (full, linger, idle, drain).
        batches_total: IntCounterVec ["stage", "trigger"],
        /// Inputs answered, by task, model and error code ("ok" if none). A batch response is 200 even if inputs
        /// failed.
        items_total: IntCounterVec ["task", "model", "code"],
        /// Time spent in a stage (fetch, decode, preprocess, tokenize, vision, text, post).
        stage_duration_seconds: HistogramVec ["stage"] {STAGE_SECONDS},
        /// Time from admission (before the body is read) to the first token of a sequence or beam group.
        time_to_first_token_seconds: Histogram {REQUEST_SECONDS},
        /// Time between successive tokens of a sequence or beam group.
        inter_token_latency_seconds: Histogram {STAGE_SECONDS},
        /// Tokens generated, including those of discarded beams.
        generated_tokens_total: IntCounter,
        /// Length of prompts, questions and texts in tokens, including special tokens.
        prompt_tokens: Histogram {PROMPT_TOKENS},
        /// Images encoded by a vision tower, not counting cache hits and shared (single-flight) encodings.
        images_encoded_total: IntCounter,
        /// Image fetches in progress, plus fetched files that are not decoded yet.
        fetch_permits_in_use: IntGauge,
        /// Fetches of images given as URLs, by result (ok, or the kind of failure; blocked means that the URL or address is not allowed).
        fetch_total: IntCounterVec ["result"],
        /// Size of decoded images in pixels.
        image_pixels: Histogram {PIXELS},
        /// Images decoded, by file format.
        image_format_total: IntCounterVec ["format"],
        /// Images that are being decoded or resized.
        decode_permits_in_use: IntGauge,
        /// 1 while the worker thread is alive and its models work, else 0. There is one worker for each GPU, or one on
        /// the CPU; /info names their devices.
        worker_up: IntGaugeVec ["worker"],
        /// Times that the worker rebuilt its backend (reloaded its models) because it had failed.
        worker_restarts_total: IntCounterVec ["worker"],
        /// Model outputs rejected because they were NaN or infinite.
        non_finite_outputs_total: IntCounter,
        /// Calls of the model that ran out of device memory. A batch that is retried in halves may count more than once.
        oom_total: IntCounter,
        /// Memory of the worker's GPU in bytes, by part (total; allocated: by this process for models and their work;
        /// used: of that, in use). Absent on a CPU.
        device_memory_bytes: IntGaugeVec ["worker", "part"],
        /// Pages of the KV caches in the memory of the worker's GPU, by state (used, free). Absent on a CPU.
        device_kv_pages: IntGaugeVec ["worker", "state"],
        /// Passes that the worker's GPU ran as one recorded graph.
        device_graph_launches_total: IntCounterVec ["worker"],
        /// Recorded graphs of the worker's GPU that could not be built, or were dropped because passes kept differing
        /// from them. Such passes launch each kernel separately, which is slower.
        device_graphs_lost_total: IntCounterVec ["worker"],
        /// Seconds that the worker spent computing.
        worker_busy_seconds_total: CounterVec ["worker"],
        /// Unix time of the worker's last heartbeat.
        worker_heartbeat_timestamp_seconds: GaugeVec ["worker"],
        /// Panics caught, by location (handler, decode, worker).
        panics_total: IntCounterVec ["where"],
        /// Cache look-ups, by cache (pixels, features) and result (hit, miss, joined: shares another request's work).
        cache_requests_total: IntCounterVec ["cache", "result"],
        /// Bytes held in a cache.
        cache_bytes: IntGaugeVec ["cache"],
        /// Cache entries evicted, by cache.
        cache_evictions_total: IntCounterVec ["cache"],
        /// Spans of traces that the collector has accepted.
        trace_spans_exported_total: IntCounter,
        /// Spans of traces that could not be sent to the collector, or that it rejected.
        trace_spans_failed_total: IntCounter,
        /// Spans of traces that were not sent, by reason: the queue was full, their request had too many, or they ended too late in a shutdown.
        trace_spans_dropped_total: IntCounterVec ["reason"],
        /// 1 while the server is ready, else 0.
        ready: IntGauge,
        /// 1 during graceful shutdown, else 0.
        draining: IntGauge,
        /// Always 1; the label holds the version.
        build_info: IntGaugeVec ["version"],
        /// Always 1; the labels describe a loaded model.
        model_info: IntGaugeVec ["model", "role", "revision", "dtype", "device"],
        /// Time to load a model.
        model_load_seconds: GaugeVec ["model"],
    }
}

impl Metrics {
    /// Returns the registry of these metrics, to gather them or to add collectors.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Encodes all metrics in the Prometheus text format, version 0.0.4.
    ///
    /// # Errors
    /// When a metric cannot be encoded. That never happens for the metrics of this struct.
    pub fn to_text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Creates the metrics whose label values are known in advance, with the value 0, so that rates exist from the
    /// first scrape. Also sets `build_info`.
    fn initialise(&self) {
        for stage in ["vision", "text"] {
            self.queue_depth.with_label_values(&[stage]);
            self.queue_wait_seconds.with_label_values(&[stage]);
            for trigger in ["full", "linger", "idle", "drain"] {
                self.batches_total.with_label_values(&[stage, trigger]);
            }
        }
        for stage in ["fetch", "decode", "preprocess", "tokenize", "vision", "text", "post"] {
            self.stage_duration_seconds.with_label_values(&[stage]);
        }
        for reason in ["full", "deadline", "draining", "memory"] {
            self.queue_rejected_total.with_label_values(&[reason]);
        }
        for result in ["ok", "blocked", "timeout", "too_large", "status", "redirect", "unreachable"]
        {
            self.fetch_total.with_label_values(&[result]);
        }
        for format in ["jpeg", "png", "webp", "gif", "bmp"] {
            self.image_format_total.with_label_values(&[format]);
        }
        for place in ["handler", "decode", "worker"] {
            self.panics_total.with_label_values(&[place]);
        }
        for cache in ["pixels", "features"] {
            self.cache_bytes.with_label_values(&[cache]);
            self.cache_evictions_total.with_label_values(&[cache]);
            for result in ["hit", "miss", "joined"] {
                self.cache_requests_total.with_label_values(&[cache, result]);
            }
        }
        for connection in ["idle", "newcomer"] {
            self.http_connections_shed_total.with_label_values(&[connection]);
        }
        for reason in ["queue_full", "request_limit", "shutdown"] {
            self.trace_spans_dropped_total.with_label_values(&[reason]);
        }
        for files in ["keys", "certificate"] {
            for result in ["ok", "failed"] {
                self.file_reloads_total.with_label_values(&[files, result]);
            }
        }
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }
}

/// A guard that raises a gauge of things in progress, and lowers it again when dropped.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge, i64);

impl GaugeGuard {
    /// Raises the gauge by one.
    #[must_use]
    pub fn new(gauge: &IntGauge) -> Self {
        Self::with_amount(gauge, 1)
    }

    /// Raises the gauge by `amount`.
    #[must_use]
    pub fn with_amount(gauge: &IntGauge, amount: i64) -> Self {
        gauge.add(amount);
        Self(gauge.clone(), amount)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_texts_are_the_doc_comments_and_known_labels_start_at_zero() {
        let text = Metrics::try_new().unwrap().to_text().unwrap();
        assert!(text.contains(
            "# HELP blip_queue_cancelled_total Tasks cancelled because their client disconnected or read too slowly.\n"
        ));
        assert!(text.contains("blip_queue_rejected_total{reason=\"full\"} 0\n"));
        assert!(text.contains("blip_panics_total{where=\"handler\"} 0\n"));
        assert!(text.contains("blip_build_info{version="));
        assert!(text.contains("process_resident_memory_bytes"));
        assert!(text.contains("# TYPE blip_log_lines_dropped_total counter"));
    }

    #[test]
    fn a_gauge_falls_back_when_its_guard_is_dropped() {
        let metrics = Metrics::try_new().unwrap();
        let guard = GaugeGuard::with_amount(&metrics.queue_rows, 3);
        assert_eq!(metrics.queue_rows.get(), 3);
        drop(guard);
        assert_eq!(metrics.queue_rows.get(), 0);
    }
}
