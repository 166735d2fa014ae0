//! The context of one request: its id, its time of arrival, and notes that handlers make about it for the
//! `server-timing` field, the access log and the metrics. `request_id` creates it, and all other layers read it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::Code;
use crate::task::{ImageInfo, Scope, TaskTiming};

/// Context of a request, kept in the request's extensions. Clones share the notes.
#[derive(Debug, Clone)]
pub(crate) struct RequestContext {
    /// The request id that the client sees.
    pub(crate) id: Arc<str>,
    /// When the head of the request had been read.
    pub(crate) arrived: Instant,
    notes: Arc<Mutex<Notes>>,
}

/// The owner of the API key that a request came with.
#[derive(Debug, Clone)]
pub(crate) struct KeyOwner {
    /// The id that the log shows.
    pub(crate) id: Arc<str>,
    /// The scope of caches and limits.
    pub(crate) scope: Scope,
}

/// Notes about a request, which layers and handlers fill in as they learn more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// `None` if the server has no keys.
    pub(crate) owner: Option<KeyOwner>,
    /// Name of the model that answers.
    pub(crate) model: Option<String>,
    /// Bytes of the body read so far.
    pub(crate) bytes_in: u64,
    /// Number of inputs of the call.
    pub(crate) inputs: usize,
    /// Time to fetch an image by URL; the longest of the call's images.
    pub(crate) fetch: Option<Duration>,
    /// Time to decode and resize an image; the longest of the call's images.
    pub(crate) decode: Option<Duration>,
    /// Times in the queue, the vision tower and the text tower; for each, the longest of the call's items.
    pub(crate) task: Option<TaskTiming>,
    /// Format and size of the first image.
    pub(crate) image: Option<ImageInfo>,
    /// Images whose pixels were in the cache already.
    pub(crate) cached_images: usize,
    /// Number of tokens in the answer.
    pub(crate) tokens: usize,
    /// The error with which a stream ended after it had begun.
    pub(crate) stream_error: Option<Code>,
    /// The answer is a stream, so its timings are in its last event.
    pub(crate) streaming: bool,
}

impl RequestContext {
    /// The context of a request that arrives now.
    pub(crate) fn new(id: Arc<str>) -> Self {
        Self { id, arrived: Instant::now(), notes: Arc::default() }
    }

    /// Changes the notes in place.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Notes)) {
        // Ignore a poisoned lock: notes are plain values, and those that a panicking handler left are worth logging.
        change(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A copy of the current notes.
    pub(crate) fn notes(&self) -> Notes {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The scope of image ids and caches that the request may use.
    pub(crate) fn scope(&self) -> Scope {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.owner.as_ref().map_or(Scope::EVERYONE, |owner| owner.scope)
    }

    /// Time since the request arrived.
    pub(crate) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }
}

impl Notes {
    /// Adds the time to fetch one image.
    pub(crate) fn add_fetch(&mut self, fetch: Duration) {
        self.fetch = Some(self.fetch.unwrap_or_default().max(fetch));
    }

    /// Adds the time to decode one image.
    pub(crate) fn add_decode(&mut self, decode: Duration) {
        self.decode = Some(self.decode.unwrap_or_default().max(decode));
    }

    /// Adds the times of one item.
    pub(crate) fn add_task(&mut self, timing: TaskTiming) {
        let longest = self.task.unwrap_or_default();
        self.task = Some(TaskTiming {
            queue: longest.queue.max(timing.queue),
            vision: longest.vision.max(timing.vision),
            text: longest.text.max(timing.text),
        });
    }
}
