//! The spans of a request while it is in progress. [`ParentSpan`] is the handle with which the parts of a request record
//! them; it does nothing for a request that is not traced. The number of spans of a request is bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::context::{Flags, SpanId, TraceId};
use super::queue::{FinishedTrace, SpanQueue};

/// Maximum number of spans of one request besides that of the server. A batch call of 64 inputs with one uploaded image
/// each needs 6 for each input (`decode.wait`, `decode`, `input`, `queue`, `vision`, `text`) and 2 for the call (`read`,
/// `tokenize`): 386. Images by URL need 2 more for each input, 514 in all, and a bulk request may have any number of lines.
/// Further spans are counted in the attribute `blip.dropped_spans` of the server's span.
const MAX_SPANS: usize = 512;

/// Maximum length of a text in an attribute, in bytes.
const MAX_TEXT: usize = 256;

/// An attribute of a span.
pub type Attribute = (&'static str, Value);

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A count.
    Count(u64),
    /// A number, such as milliseconds.
    Number(f64),
    /// A text of our own.
    Name(&'static str),
    /// Another text. Only its first 256 bytes are exported.
    Text(String),
}

impl Value {
    /// Creates a text that may come from a client.
    #[must_use]
    pub fn text(text: &str) -> Self {
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
        Self::Text(text[..end.unwrap_or(0)].to_owned())
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

/// Why the work of a span did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The attribute `error.type`: a problem code, or `client_closed`.
    pub code: &'static str,
    /// Whether the span gets the status `Error`.
    pub is_error: bool,
}

/// What all spans of a trace share.
#[derive(Debug)]
pub(super) struct TraceIdentity {
    pub(super) trace_id: TraceId,
    pub(super) flags: Flags,
    /// The client's `tracestate`, if it is valid.
    pub(super) state: opentelemetry::trace::TraceState,
    /// The same moment on both clocks. All times of the trace are measured by the monotonic clock.
    pub(super) anchor: (Instant, SystemTime),
}

/// A span that is over.
#[derive(Debug)]
pub(super) struct FinishedSpan {
    pub(super) id: SpanId,
    pub(super) parent: Option<SpanId>,
    /// True for the span of the server as a whole, whose parent is the client's.
    pub(super) is_server: bool,
    pub(super) name: std::borrow::Cow<'static, str>,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) attributes: Vec<Attribute>,
    pub(super) failure: Option<Failure>,
}

/// The spans of one request, shared by all its handles.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) identity: Arc<TraceIdentity>,
    queue: Arc<SpanQueue>,
    clock: fn() -> Instant,
    /// Time at which the server's span began; no other begins earlier.
    began: Instant,
    max_spans: usize,
    collected: Mutex<Collected>,
}

#[derive(Debug, Default)]
struct Collected {
    spans: Vec<FinishedSpan>,
    /// Number of spans that have been recorded so far, and of those that were too many.
    added: usize,
    dropped: usize,
    /// True once the server's span has ended. Later spans, such as those of work that is being cancelled, are queued one
    /// by one.
    is_finished: bool,
}

impl Recorder {
    pub(super) fn new(
        identity: Arc<TraceIdentity>,
        queue: Arc<SpanQueue>,
        (clock, began): (fn() -> Instant, Instant),
    ) -> Self {
        // A request's spans, with that of the server, must fit into the empty queue.
        let max_spans = MAX_SPANS.min(queue.max_spans() - 1);
        Self { identity, queue, clock, began, max_spans, collected: Mutex::default() }
    }

    fn add(&self, span: FinishedSpan) {
        let mut collected = self.lock();
        if collected.added >= self.max_spans {
            collected.dropped += 1;
            drop(collected);
            self.queue.count_above_limit();
            return;
        }
        collected.added += 1;
        if collected.is_finished {
            drop(collected);
            self.send(vec![span]);
        } else {
            collected.spans.push(span);
        }
    }

    /// Ends the trace with the server's span. Its attributes may depend on the number of spans that were not recorded.
    pub(super) fn finish(&self, server: impl FnOnce(usize) -> FinishedSpan) {
        let mut collected = self.lock();
        collected.is_finished = true;
        let dropped = collected.dropped;
        let mut spans = std::mem::take(&mut collected.spans);
        drop(collected);
        spans.push(server(dropped));
        self.send(spans);
    }

    fn send(&self, spans: Vec<FinishedSpan>) {
        self.queue.push(FinishedTrace { identity: Arc::clone(&self.identity), spans });
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        // Nothing panics while it holds the lock.
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates a random id that is not 0.
pub(super) fn new_span_id() -> SpanId {
    let ids = RandomIdGenerator::default();
    std::iter::repeat_with(|| u64::from_be_bytes(ids.new_span_id().to_bytes()))
        .find(|&id| id != 0)
        .map_or(SpanId(1), SpanId)
}

/// A place in a trace below which spans are recorded: below the server's span, or below an open span. Empty if the request
/// is not traced; then nothing is recorded.
#[derive(Debug, Clone, Default)]
pub struct ParentSpan(Option<(Arc<Recorder>, SpanId)>);

impl ParentSpan {
    pub(super) fn below(recorder: Arc<Recorder>, parent: SpanId) -> Self {
        Self(Some((recorder, parent)))
    }

    /// True if the request is traced. Callers need not ask, unless they compute something only for the trace.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Records a span that is over. It cannot begin before the request: work that is shared with an earlier request may
    /// have.
    pub fn record(
        &self,
        name: &'static str,
        (began, ended): (Instant, Instant),
        attributes: impl FnOnce() -> Vec<Attribute>,
    ) {
        let Some((recorder, parent)) = &self.0 else { return };
        let began = began.max(recorder.began);
        recorder.add(FinishedSpan {
            id: new_span_id(),
            parent: Some(*parent),
            is_server: false,
            name: name.into(),
            began,
            ended: ended.max(began),
            attributes: attributes(),
            failure: None,
        });
    }

    /// Begins a span, which ends when the returned value is ended or dropped.
    #[must_use]
    pub fn open(&self, name: &'static str) -> OpenSpan {
        let open = self.0.as_ref().map(|(recorder, parent)| Open {
            recorder: Arc::clone(recorder),
            span: FinishedSpan {
                id: new_span_id(),
                parent: Some(*parent),
                is_server: false,
                name: name.into(),
                began: (recorder.clock)(),
                ended: recorder.began,
                attributes: Vec::new(),
                failure: None,
            },
        });
        OpenSpan(open)
    }
}

/// A span in progress. If it is dropped before it is ended, its work was cancelled: it then has the attribute
/// `blip.cancelled`.
#[derive(Debug)]
pub struct OpenSpan(Option<Open>);

#[derive(Debug)]
struct Open {
    recorder: Arc<Recorder>,
    span: FinishedSpan,
}

impl OpenSpan {
    /// Returns the place below this span.
    #[must_use]
    pub fn spans(&self) -> ParentSpan {
        let open = self.0.as_ref();
        ParentSpan(open.map(|open| (Arc::clone(&open.recorder), open.span.id)))
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl FnOnce() -> Value) {
        if let Some(open) = &mut self.0 {
            open.span.attributes.push((name, value()));
        }
    }

    /// Ends the span. `code` is the problem code of work that failed.
    pub fn end(mut self, code: Option<&'static str>) {
        self.finish(|span| span.failure = code.map(|code| Failure { code, is_error: true }));
    }

    /// Ends the span of work that failed with this problem code.
    pub fn fail(&mut self, code: &'static str) {
        self.finish(|span| span.failure = Some(Failure { code, is_error: true }));
    }

    fn finish(&mut self, change: impl FnOnce(&mut FinishedSpan)) {
        let Some(Open { recorder, mut span }) = self.0.take() else { return };
        span.ended = (recorder.clock)();
        change(&mut span);
        recorder.add(span);
    }

    /// Ends the span of work that began at `began` and took `took`, after a wait that gets a span of its own, called `wait`.
    /// Work that was shared with an earlier request may have begun before: then there was no wait.
    pub fn end_after_wait(mut self, wait: &'static str, (began, took): (Instant, Duration)) {
        let Some(Open { recorder, mut span }) = self.0.take() else { return };
        span.ended = (began + took).max(span.began);
        if let (Some(parent), true) = (span.parent, began > span.began) {
            let waited = (span.began, began);
            ParentSpan::below(Arc::clone(&recorder), parent).record(wait, waited, Vec::new);
            span.began = began;
        }
        recorder.add(span);
    }

    /// Ends the span without recording it, because other spans say more.
    pub fn discard(mut self) {
        self.0 = None;
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        self.finish(|span| span.attributes.push(("blip.cancelled", Value::Bool(true))));
    }
}
