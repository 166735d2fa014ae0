//! The context of one request: its id, its time of arrival, and notes that handlers make about it for the
//! `server-timing` field, the access log and the metrics. `request_id` creates it, and all other layers read it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::Code;
use crate::platform;
use crate::task::{ImageInfo, Scope, TaskTiming};
use crate::telemetry::trace::ParentSpan;

/// Context of a request, stored in the request's extensions. Clones share the notes.
#[derive(Debug, Clone)]
pub(crate) struct RequestContext {
    /// The request id that the client sees.
    pub(crate) id: Arc<str>,
    /// Time at which the request head had been read completely.
    pub(crate) arrived: Instant,
    /// Where the spans of this request, or of one part of it, are recorded. Clones that [`below`](Self::below) creates
    /// have another place.
    pub(crate) spans: ParentSpan,
    notes: Arc<Mutex<Notes>>,
}

/// What a connection and a bulk request on it tell each other: such a client may send for a long time before it reads.
/// Stored in the request's extensions. Clones share the values.
#[derive(Debug, Clone, Default)]
pub(crate) struct BulkConnection {
    state: Arc<BulkState>,
    /// Cancelled when the connection must close to make room for another.
    close_token: CancellationToken,
}

#[derive(Debug, Default)]
struct BulkState {
    /// Maximum time, in milliseconds, for which the client may neither send nor read; 0 if there is no bulk request.
    idle_timeout_ms: AtomicU64,
    /// True while lines of the request are being worked on.
    is_working: AtomicBool,
    /// True while the request waits for its turn.
    is_waiting: AtomicBool,
    /// True while writing is blocked because the client does not read.
    is_stalled: AtomicBool,
}

/// A bulk request on a connection. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct BulkGuard(BulkConnection);

/// A bulk request that waits for its turn.
#[derive(Debug)]
pub(crate) struct WaitingGuard<'a>(&'a BulkState);

impl BulkConnection {
    /// Returns a clone that is closed by this token.
    pub(crate) fn closed_by(&self, close_token: CancellationToken) -> Self {
        Self { state: Arc::clone(&self.state), close_token }
    }

    /// Begins a bulk request whose client may neither send nor read for at most `idle_timeout`.
    pub(crate) fn begin(self, idle_timeout: Duration) -> BulkGuard {
        let millis = u64::try_from(idle_timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self.state.idle_timeout_ms.store(millis, Ordering::Release);
        BulkGuard(self)
    }

    /// Returns how long the client may neither send nor read; `None` if there is no bulk request.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        match self.state.idle_timeout_ms.load(Ordering::Acquire) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// Notes that another request begins, which may not be a bulk request.
    pub(crate) fn reset(&self) {
        self.state.idle_timeout_ms.store(0, Ordering::Release);
    }

    /// Notes whether writing is blocked because the client does not read.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.state.is_stalled.store(stalled, Ordering::Release);
    }

    /// True while writing is blocked because the client does not read.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state.is_stalled.load(Ordering::Acquire)
    }

    /// True while lines of a bulk request are being worked on.
    pub(crate) fn is_working(&self) -> bool {
        self.state.is_working.load(Ordering::Acquire)
    }

    /// True while the server works on a bulk request, or keeps it waiting. Meanwhile the server itself may not read, so
    /// a client that sends everything before it reads cannot read.
    pub(crate) fn may_not_read(&self) -> bool {
        self.is_working() || self.state.is_waiting.load(Ordering::Acquire)
    }
}

impl BulkGuard {
    /// Resolves when the connection must close to make room for another. Reading the body reports this as well, but a
    /// request that waits for its turn does not read.
    pub(crate) async fn must_close(&self) {
        self.0.close_token.cancelled().await;
    }

    /// Notes whether lines are being worked on.
    pub(crate) fn set_working(&self, working: bool) {
        self.0.state.is_working.store(working, Ordering::Release);
    }

    /// Notes that the request waits for its turn until the guard is dropped.
    pub(crate) fn wait(&self) -> WaitingGuard<'_> {
        self.0.state.is_waiting.store(true, Ordering::Release);
        WaitingGuard(&self.0.state)
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.is_waiting.store(false, Ordering::Release);
    }
}

impl Drop for BulkGuard {
    fn drop(&mut self) {
        self.set_working(false);
        // The answers that are still being sent need the long timeout, so it stays until the next request.
    }
}

/// The owner of the API key that a request came with.
#[derive(Debug, Clone)]
pub(crate) struct KeyOwner {
    /// The id that the log shows.
    pub(crate) id: Arc<str>,
    /// The scope of the owner's images, caches and limits.
    pub(crate) scope: Scope,
}

/// Notes about a request, which layers and handlers fill in as they learn more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// Owner of the API key; `None` if the server has no keys or the request needed none.
    pub(crate) owner: Option<KeyOwner>,
    /// Name of the task, such as `caption`.
    pub(crate) task_name: Option<&'static str>,
    /// Name of the model that answers the request.
    pub(crate) model: Option<String>,
    /// Number of bytes of the body that have been read.
    pub(crate) bytes_in: u64,
    /// Number of inputs of the call.
    pub(crate) inputs: usize,
    /// Longest time taken to fetch an image of the call by URL.
    pub(crate) fetch: Option<Duration>,
    /// Longest time taken to decode and resize an image of the call.
    pub(crate) decode: Option<Duration>,
    /// Times in the queue, the vision tower and the text tower; each is the longest among the items of the call.
    pub(crate) task: Option<TaskTiming>,
    /// Format and size of the first image.
    pub(crate) image: Option<ImageInfo>,
    /// Number of images whose pixels were already in the cache.
    pub(crate) cached_images: usize,
    /// Number of tokens in the response.
    pub(crate) tokens: usize,
    /// The error with which a stream ended after it had begun, or with which the tool of an answered message failed.
    pub(crate) stream_error: Option<Code>,
    /// True if the response is a stream. Its timings are then in the last event of the stream.
    pub(crate) streaming: bool,
}

impl RequestContext {
    /// Creates the context of a request that arrives now.
    pub(crate) fn new(id: Arc<str>) -> Self {
        Self { id, arrived: platform::now(), spans: ParentSpan::default(), notes: Arc::default() }
    }

    /// Returns a clone whose spans are recorded at this place.
    pub(crate) fn below(&self, spans: ParentSpan) -> Self {
        Self { spans, ..self.clone() }
    }

    /// Changes the notes in place.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Notes)) {
        // Ignore a poisoned lock: notes are plain values, and the notes that a panicking handler left are worth
        // logging.
        change(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns a copy of the current notes.
    pub(crate) fn notes(&self) -> Notes {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the scope of image ids and caches that the request may use.
    pub(crate) fn scope(&self) -> Scope {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.owner.as_ref().map_or(Scope::EVERYONE, |owner| owner.scope)
    }

    /// Returns the time since the request arrived.
    pub(crate) fn elapsed(&self) -> Duration {
        platform::elapsed(self.arrived)
    }
}

impl Notes {
    /// Records the time taken to fetch one image. Only the longest time is stored.
    pub(crate) fn add_fetch(&mut self, fetch: Duration) {
        self.fetch = Some(self.fetch.unwrap_or_default().max(fetch));
    }

    /// Records the time taken to decode one image. Only the longest time is stored.
    pub(crate) fn add_decode(&mut self, decode: Duration) {
        self.decode = Some(self.decode.unwrap_or_default().max(decode));
    }

    /// Records the times of one item. Only the longest time of each stage is stored.
    pub(crate) fn add_task(&mut self, timing: TaskTiming) {
        let longest = self.task.unwrap_or_default();
        self.task = Some(TaskTiming {
            queue: longest.queue.max(timing.queue),
            vision: longest.vision.max(timing.vision),
            text: longest.text.max(timing.text),
        });
    }
}
