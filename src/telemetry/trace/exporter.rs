//! The exporter's thread: takes batches from the queue, and sends them with opentelemetry-otlp. It never delays a
//! request. What cannot be sent is counted, and logged at most once a minute.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use futures_executor::block_on;
use opentelemetry::InstrumentationScope;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::IntCounter;

use super::client::CollectorClient;
use super::convert;
use super::queue::SpanQueue;
use super::resource::resource;
use super::settings::{TraceEndpoint, TraceSettings};
use super::spans::new_span_id;
use crate::telemetry::metrics::Metrics;

/// Shortest time between two log lines about failed exports.
const QUIET: Duration = Duration::from_secs(60);

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceSetupError {
    /// The HTTP client or the exporter cannot be created.
    #[error("cannot create the exporter of traces for {endpoint}: {problem}")]
    Exporter {
        /// Where the traces should go.
        endpoint: String,
        /// What is wrong, in words.
        problem: String,
    },
    /// The operating system could not start the thread.
    #[error("cannot start the thread that exports traces")]
    Thread(#[source] io::Error),
}

/// Starts the thread, which ends when the queue is closed and empty.
pub(super) fn start(
    settings: &TraceSettings,
    endpoint: &TraceEndpoint,
    queue: Arc<SpanQueue>,
    metrics: &Metrics,
) -> Result<(), TraceSetupError> {
    let (settings, endpoint) = (settings.clone(), endpoint.clone());
    let counters = Counters {
        exported: metrics.trace_spans_exported_total.clone(),
        failed: metrics.trace_spans_failed_total.clone(),
    };
    let (report, started) = sync_channel(1);
    let body = move || {
        // A blocking client must be created and dropped outside of the async runtime.
        let ended = EndsQueue(queue);
        match Exporter::try_new(&settings, &endpoint, counters) {
            Ok(mut exporter) => {
                // The caller waits for the report.
                let _ = report.send(Ok(()));
                exporter.run(&ended.0, settings.max_batch_spans);
            }
            Err(error) => {
                let problem = error.to_string();
                let endpoint = endpoint.shown();
                let _ = report.send(Err(TraceSetupError::Exporter { endpoint, problem }));
            }
        }
    };
    let thread = std::thread::Builder::new().name("traces".to_owned());
    thread.spawn(body).map_err(TraceSetupError::Thread)?;
    let ended = || TraceSetupError::Thread(io::Error::other("it has ended"));
    started.recv().unwrap_or_else(|_| Err(ended()))
}

/// Ends the queue when the thread ends, even by a panic, so that a shutdown does not wait for it.
struct EndsQueue(Arc<SpanQueue>);

impl Drop for EndsQueue {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Counters {
    exported: IntCounter,
    failed: IntCounter,
}

struct Exporter {
    otlp: SpanExporter,
    client: Arc<CollectorClient>,
    scope: InstrumentationScope,
    counters: Counters,
    log: FailureLog,
}

impl Exporter {
    fn try_new(
        settings: &TraceSettings,
        endpoint: &TraceEndpoint,
        counters: Counters,
    ) -> Result<Self, HttpError> {
        let client = Arc::new(CollectorClient::try_new(settings, endpoint)?);
        let mut otlp = SpanExporter::builder()
            .with_http()
            .with_shared_http_client(Arc::clone(&client) as Arc<dyn HttpClient>)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.as_str())
            .with_timeout(settings.timeout.min(settings.export_timeout))
            .build()?;
        otlp.set_resource(&resource(settings, (new_span_id(), new_span_id())));
        let log = FailureLog { endpoint: endpoint.shown(), ..FailureLog::default() };
        Ok(Self { otlp, client, scope: convert::scope(), counters, log })
    }

    fn run(&mut self, queue: &SpanQueue, max_batch: usize) {
        while let Some(traces) = queue.next_batch() {
            let scope = self.scope.clone();
            let spans = traces.into_iter().flat_map(|trace| convert::spans(trace, &scope));
            let mut spans = spans.collect::<Vec<_>>();
            while !spans.is_empty() {
                let rest = spans.split_off(spans.len().min(max_batch));
                self.export(std::mem::replace(&mut spans, rest));
            }
        }
    }

    fn export(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        let result = block_on(self.otlp.export(spans));
        let failed = match &result {
            Ok(()) => self.client.take_rejected().min(count),
            Err(_) => count,
        };
        self.counters.exported.inc_by(count - failed);
        self.counters.failed.inc_by(failed);
        if failed == 0 {
            self.log.succeeded();
            return;
        }
        // If no request was made, only the exporter knows why.
        let problem = self.client.problem().or_else(|| result.err().map(|error| error.to_string()));
        self.log.failed(&problem.unwrap_or_default(), failed, Instant::now());
    }
}

/// Logs failed exports, but not each of them.
#[derive(Debug, Default)]
struct FailureLog {
    endpoint: String,
    last_line: Option<Instant>,
    /// Number of spans that were lost since the last line.
    lost: u64,
    /// Whether the last line was about a failure.
    is_failing: bool,
}

impl FailureLog {
    /// Logs a failure, unless that was done a short time ago.
    fn failed(&mut self, problem: &str, spans: u64, now: Instant) {
        self.lost += spans;
        if self.last_line.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            return;
        }
        (self.last_line, self.is_failing) = (Some(now), true);
        let (endpoint, lost) = (&self.endpoint, std::mem::take(&mut self.lost));
        tracing::warn!(
            endpoint,
            spans = lost,
            problem,
            "{lost} spans could not be exported to {endpoint}: {problem}; check tracing.endpoint and tracing.headers, and \
             that the collector runs"
        );
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            let endpoint = &self.endpoint;
            tracing::info!(endpoint, "traces are exported to {endpoint} again");
        }
    }
}
