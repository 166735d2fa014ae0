//! Every metric of the process in one struct; the doc comment of a field is its HELP text.
//!
//! Labels come from closed sets only (routes, methods, configured model names, our own codes), never from
//! a client's strings. Counters that are known in advance start at 0. Gauges that count things in progress
//! are raised through [`GaugeGuard`], which cannot leak.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::log_queue::dropped_lines;
use super::process::ProcessCollector;

/// Builds one metric from its name, help, labels and buckets; the macro below calls it for each field.
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
    Gauge => |opts, _labels, _buckets| Self::with_opts(opts);
    GaugeVec => |opts, labels, _buckets| Self::new(opts, labels);
    Histogram => |opts, _labels, buckets| Self::with_opts(HistogramOpts::from(opts).buckets(buckets.to_vec()));
    HistogramVec => |opts, labels, buckets| Self::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels);
}

/// Declares the struct and its constructor: `/// HELP` `field: Kind [labels] {buckets}`.
/// The metric's name is `blip_` and the field's.
macro_rules! metrics {
    ($(#[$outer:meta])* pub struct $name:ident { $($(#[doc = $help:literal])+ $field:ident: $kind:ty $([$($label:literal),*])? $({$buckets:expr})?,)* }) => {
        $(#[$outer])*
        pub struct $name {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)*
        }

        impl $name {
            /// Registers every metric in a registry of its own, and those of the process: `process_*`, and
            /// `blip_log_lines_dropped_total`.
            ///
            /// # Errors
            /// When a metric's declaration is not valid for Prometheus.
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

/// A cached answer takes about a millisecond, a beam search on a CPU many seconds; the deadline is 30 s.
const REQUEST_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Stages go from a tokenizer's tens of microseconds to a vision batch of seconds.
const STAGE_SECONDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// 1 KiB to 16 MiB in steps of four, and the body limit's power above.
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
/// Powers of two up to the largest unit.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
/// Prompts and questions: a few words to the model's 512.
const PROMPT_TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// A thumbnail to the 50-megapixel limit.
const PIXELS: &[f64] = &[1e4, 5e4, 1e5, 3e5, 1e6, 3e6, 1e7, 2.5e7, 5e7];

metrics! {
    /// The process's metrics. One value, shared by reference count.
    pub struct Metrics {
        /// Requests answered, by matched route, method, status and problem code ("ok" when there is none).
        http_requests_total: IntCounterVec ["route", "method", "status", "code"],
        /// Time from the request's head to its answer's last byte handed to the connection.
        http_request_duration_seconds: HistogramVec ["route"] {REQUEST_SECONDS},
        /// Requests being answered.
        http_requests_in_flight: IntGauge,
        /// Bytes of request bodies.
        http_request_body_bytes: Histogram {BODY_BYTES},
        /// Refused or failed requests by problem code.
        request_failures_total: IntCounterVec ["reason"],
        /// Requests that had no answer yet when the drain time was over and their connections were cut.
        http_requests_cut_total: IntCounter,
        /// Open connections, those of operators too.
        http_connections: IntGauge,
        /// Connections that a full listener closed, by which (idle: made room for a newcomer; newcomer: found no room).
        http_connections_shed_total: IntCounterVec ["connection"],
        /// Connections that ended before a TLS handshake was complete.
        tls_handshake_failures_total: IntCounter,
        /// Changed files that were read again, by kind (keys, certificate) and result (ok, failed).
        file_reloads_total: IntCounterVec ["files", "result"],
        /// Work waiting, by stage (vision: images; text: rows).
        queue_depth: IntGaugeVec ["stage"],
        /// Rows that may be admitted at one time.
        queue_capacity: IntGauge,
        /// Rows admitted and not yet answered.
        queue_rows: IntGauge,
        /// Bytes reserved by admitted requests (bodies and prepared pixels).
        queue_bytes: IntGauge,
        /// Time from submission to the start of the work, by stage.
        queue_wait_seconds: HistogramVec ["stage"] {REQUEST_SECONDS},
        /// Unix time at which the oldest waiting task was submitted; 0 when nothing waits.
        queue_oldest_enqueue_timestamp_seconds: Gauge,
        /// Requests refused before any work was done, by reason (full, deadline, draining, memory).
        queue_rejected_total: IntCounterVec ["reason"],
        /// Tasks dropped because their client had left.
        queue_cancelled_total: IntCounter,
        /// Images per vision batch and rows per text step, by stage and model.
        batch_size: HistogramVec ["stage", "model"] {BATCH_SIZES},
        /// Units run, by stage and what started them (full, linger, idle, drain).
        batches_total: IntCounterVec ["stage", "trigger"],
        /// Items answered, by task, model and problem code ("ok" when there is none); batch calls hide these behind 200.
        items_total: IntCounterVec ["task", "model", "code"],
        /// Time of one stage's work (fetch, decode, preprocess, tokenize, vision, text, post).
        stage_duration_seconds: HistogramVec ["stage"] {STAGE_SECONDS},
        /// Time from a call's admission (its head is read, its body not yet) to the first token of each sequence or beam group.
        time_to_first_token_seconds: Histogram {REQUEST_SECONDS},
        /// Time from one token of a sequence or beam group to its next.
        inter_token_latency_seconds: Histogram {STAGE_SECONDS},
        /// Tokens generated, discarded beams included.
        generated_tokens_total: IntCounter,
        /// Tokens of prompts, questions and texts, special ones included.
        prompt_tokens: Histogram {PROMPT_TOKENS},
        /// Images encoded by a vision tower (cache hits and joined flights do not count).
        images_encoded_total: IntCounter,
        /// Fetches in progress, and fetched files that are not decoded yet.
        fetch_permits_in_use: IntGauge,
        /// Images fetched by URL, by result (ok, or what went wrong; blocked: an address or URL that is not allowed).
        fetch_total: IntCounterVec ["result"],
        /// Pixels of decoded pictures.
        image_pixels: Histogram {PIXELS},
        /// Pictures decoded, by format.
        image_format_total: IntCounterVec ["format"],
        /// Decoding permits in use.
        decode_permits_in_use: IntGauge,
        /// 1 while the worker thread lives.
        worker_up: IntGauge,
        /// Times that a backend which no longer worked was built anew.
        worker_restarts_total: IntCounter,
        /// Outputs of the models that were NaN or infinite; each was refused.
        non_finite_outputs_total: IntCounter,
        /// Units that did not fit into the device's memory.
        oom_total: IntCounter,
        /// Time the worker spent computing.
        worker_busy_seconds_total: prometheus::Counter,
        /// Unix time of the worker's last sign of life.
        worker_heartbeat_timestamp_seconds: Gauge,
        /// Panics caught, by place (handler, decode, worker).
        panics_total: IntCounterVec ["where"],
        /// Cache look-ups, by cache (pixels, features) and result (hit, miss, joined: another request was already at it).
        cache_requests_total: IntCounterVec ["cache", "result"],
        /// Bytes held, by cache.
        cache_bytes: IntGaugeVec ["cache"],
        /// Entries pushed out by newer ones, by cache.
        cache_evictions_total: IntCounterVec ["cache"],
        /// 1 while requests are served.
        ready: IntGauge,
        /// 1 while shutting down.
        draining: IntGauge,
        /// 1; the version in the label.
        build_info: IntGaugeVec ["version"],
        /// 1 for each loaded model.
        model_info: IntGaugeVec ["model", "role", "revision", "dtype", "device"],
        /// Time it took to load a model.
        model_load_seconds: GaugeVec ["model"],
    }
}

impl Metric for prometheus::Counter {
    fn build(name: &str, help: &str, _: &[&str], _: &[f64]) -> prometheus::Result<Self> {
        Self::with_opts(Opts::new(name, help))
    }
}

impl Metrics {
    /// The registry, for gathering and for further collectors.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Every metric in Prometheus' text form, version 0.0.4.
    ///
    /// # Errors
    /// When a metric cannot be written, which none of ours can cause.
    pub fn to_text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Label sets that are known in advance start at 0, so that a rate exists from the first scrape.
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
        for files in ["keys", "certificate"] {
            for result in ["ok", "failed"] {
                self.file_reloads_total.with_label_values(&[files, result]);
            }
        }
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }
}

/// One more of something in progress; one less when dropped.
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
            "# HELP blip_queue_cancelled_total Tasks dropped because their client had left.\n"
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
