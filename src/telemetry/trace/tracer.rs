//! [`Tracer`]: begins the trace of each request, and decides with the SDK's samplers whether it is recorded.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanKind, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample,
};

use super::context::{Flags, SpanId, TraceId, TraceParent, traceresponse};
use super::exporter::{self, TraceSetupError};
use super::queue::SpanQueue;
use super::settings::{SamplerChoice, TraceSettings};
use super::spans::{
    Attribute, Failure, FinishedSpan, ParentSpan, Recorder, TraceIdentity, new_span_id,
};
use crate::telemetry::metrics::Metrics;

/// Longest `tracestate` that is kept, in bytes; W3C Trace Context asks for at least 512.
const MAX_STATE: usize = 512;

/// How long a shutdown waits for the last export.
pub const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Begins traces. Clones share the exporter.
#[derive(Debug, Clone)]
pub struct Tracer(Arc<TracerInner>);

#[derive(Debug)]
struct TracerInner {
    sampler: Sampler,
    reads_parents: bool,
    queue: Arc<SpanQueue>,
    clock: fn() -> Instant,
}

/// What the head of a request says about its trace.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// The client's span, if the field `traceparent` is well-formed.
    pub parent: Option<TraceParent>,
    /// The field `tracestate`.
    pub state: Option<&'a str>,
    /// When the request arrived.
    pub arrived: Instant,
}

/// The span of the server as a whole, from the arrival of a request to the last byte of its response.
#[derive(Debug)]
pub struct ServerSpan {
    trace_id: TraceId,
    span_id: SpanId,
    flags: Flags,
    parent: Option<SpanId>,
    arrived: Instant,
    clock: fn() -> Instant,
    /// `None` if the request is not traced.
    recorder: Option<Arc<Recorder>>,
}

impl Tracer {
    /// Starts the exporter, on a thread of its own; `None` if tracing is off. `clock` is the monotonic clock by which all
    /// spans are measured.
    ///
    /// # Errors
    /// If the thread or its HTTP client cannot be created.
    pub fn start(
        settings: &TraceSettings,
        metrics: &Metrics,
        clock: fn() -> Instant,
    ) -> Result<Option<Self>, TraceSetupError> {
        let Some(endpoint) = settings.endpoint.as_ref().filter(|_| settings.enabled) else {
            return Ok(None);
        };
        let queue = Arc::new(SpanQueue::new(
            (settings.max_queue_spans, settings.max_batch_spans),
            settings.batch_delay,
            &metrics.trace_spans_dropped_total,
        ));
        exporter::start(settings, endpoint, Arc::clone(&queue), metrics)?;
        let endpoint = endpoint.shown();
        tracing::info!(
            endpoint,
            sampler = %settings.sampler,
            sample_ratio = settings.sample_ratio,
            "traces are exported to {endpoint}"
        );
        Ok(Some(Self(Arc::new(TracerInner {
            sampler: sampler(settings),
            reads_parents: settings.reads_parents(),
            queue,
            clock,
        }))))
    }

    /// Begins the trace of a request, or continues the client's.
    #[must_use]
    pub fn begin(&self, incoming: Incoming<'_>) -> ServerSpan {
        let Self(inner) = self;
        let parent = incoming.parent.filter(|_| inner.reads_parents);
        let trace_id = parent.map_or_else(new_trace_id, |parent| parent.trace_id);
        let state = parent.and(incoming.state).map(read_state).unwrap_or_default();
        let is_sampled = inner.samples(parent.as_ref(), trace_id, &state);
        let flags = match parent {
            Some(parent) => parent.flags.with_sampled(is_sampled),
            None => Flags::new(is_sampled),
        };
        let clock = inner.clock;
        let recorder = is_sampled.then(|| {
            let anchor = (clock(), SystemTime::now());
            let identity = Arc::new(TraceIdentity { trace_id, flags, state, anchor });
            let queue = Arc::clone(&inner.queue);
            Arc::new(Recorder::new(identity, queue, (clock, incoming.arrived)))
        });
        ServerSpan {
            trace_id,
            span_id: new_span_id(),
            flags,
            parent: parent.map(|parent| parent.span_id),
            arrived: incoming.arrived,
            clock,
            recorder,
        }
    }

    /// Exports what is left, for at most [`LAST_EXPORT`]. Spans that end later are dropped. Blocks the calling thread.
    pub fn shut_down(&self) {
        let left = self.0.queue.close(LAST_EXPORT);
        if left > 0 {
            tracing::warn!(
                spans = left,
                "{left} spans were not exported before the shutdown: the collector was too slow"
            );
        }
    }
}

impl TracerInner {
    fn samples(&self, parent: Option<&TraceParent>, trace_id: TraceId, state: &TraceState) -> bool {
        // The lower half of this id decides whether a ratio includes the request. A client chooses the id of its trace, so
        // another one decides.
        let decisive = if parent.is_some() { new_trace_id() } else { trace_id };
        let id = opentelemetry::trace::TraceId::from(decisive.0);
        let context = parent.map(|parent| {
            let flags = TraceFlags::new(parent.flags.bits());
            let span = parent.span_id.0.into();
            Context::new().with_remote_span_context(SpanContext::new(
                id,
                span,
                flags,
                true,
                state.clone(),
            ))
        });
        let kind = SpanKind::Server;
        let result = self.sampler.should_sample(context.as_ref(), id, "", &kind, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }
}

impl ServerSpan {
    /// Returns the id of the trace, which the log shows.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// Returns the id of this span.
    #[must_use]
    pub fn span_id(&self) -> SpanId {
        self.span_id
    }

    /// Returns the field `traceresponse` of the response.
    #[must_use]
    pub fn traceresponse(&self) -> String {
        traceresponse(self.trace_id, self.span_id, self.flags)
    }

    /// Returns the place below this span.
    #[must_use]
    pub fn spans(&self) -> ParentSpan {
        let recorder = self.recorder.as_ref();
        recorder.map_or_else(ParentSpan::default, |recorder| {
            ParentSpan::below(Arc::clone(recorder), self.span_id)
        })
    }

    /// Ends this span, and hands all spans of the request to the exporter.
    pub fn finish(
        &self,
        describe: impl FnOnce() -> (Cow<'static, str>, Vec<Attribute>, Option<Failure>),
    ) {
        let Some(recorder) = &self.recorder else { return };
        let ended = (self.clock)();
        recorder.finish(|dropped| {
            let (name, mut attributes, failure) = describe();
            if dropped > 0 {
                attributes.push(("blip.dropped_spans", dropped.into()));
            }
            FinishedSpan {
                id: self.span_id,
                parent: self.parent,
                is_server: true,
                name,
                began: self.arrived,
                ended: ended.max(self.arrived),
                attributes,
                failure,
            }
        });
    }
}

fn sampler(settings: &TraceSettings) -> Sampler {
    let ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
    match settings.sampler {
        SamplerChoice::AlwaysOn => Sampler::AlwaysOn,
        SamplerChoice::AlwaysOff => Sampler::AlwaysOff,
        SamplerChoice::Ratio => ratio,
        SamplerChoice::ParentBasedAlwaysOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
        SamplerChoice::ParentBasedAlwaysOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
        SamplerChoice::ParentBasedRatio => Sampler::ParentBased(Box::new(ratio)),
    }
}

/// Creates a random id that is not 0.
fn new_trace_id() -> TraceId {
    let ids = RandomIdGenerator::default();
    std::iter::repeat_with(|| u128::from_be_bytes(ids.new_trace_id().to_bytes()))
        .find(|&id| id != 0)
        .map_or(TraceId(1), TraceId)
}

/// Parses `tracestate`. An invalid one is left out, and changes nothing about `traceparent`.
fn read_state(text: &str) -> TraceState {
    if text.len() > MAX_STATE {
        return TraceState::default();
    }
    text.parse().unwrap_or_default()
}
