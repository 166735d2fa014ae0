//! What is known of the request in hand: its id, when it came, and what handlers note down about it for the
//! `server-timing` header, the access log and the metrics. Made by `request_id`, read by every other layer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::error::Code;
use crate::task::{ImageInfo, Scope, TaskTiming};

/// A request, as an extension of it. Clones share the notes.
#[derive(Debug, Clone)]
pub(crate) struct RequestContext {
    /// The id that the client sees.
    pub(crate) id: Arc<str>,
    /// When its head had been read.
    pub(crate) arrived: Instant,
    notes: Arc<Mutex<Notes>>,
}

/// Whose API key the request came with.
#[derive(Debug, Clone)]
pub(crate) struct KeyOwner {
    /// For the log.
    pub(crate) id: Arc<str>,
    /// For caches and limits.
    pub(crate) scope: Scope,
}

/// What handlers note down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// Whose key it came with, where there are keys.
    pub(crate) owner: Option<KeyOwner>,
    /// The model that answers.
    pub(crate) model: Option<String>,
    /// Bytes of the body that were read.
    pub(crate) bytes_in: u64,
    /// Inputs of the call.
    pub(crate) inputs: usize,
    /// Fetching by URL, the longest of its images.
    pub(crate) fetch: Option<Duration>,
    /// Decoding and resizing, the longest of its images.
    pub(crate) decode: Option<Duration>,
    /// Queue, vision and text, each the longest of its items.
    pub(crate) task: Option<TaskTiming>,
    /// The first image.
    pub(crate) image: Option<ImageInfo>,
    /// Images whose pixels were held already.
    pub(crate) cached_images: usize,
    /// Tokens in the answer.
    pub(crate) tokens: usize,
    /// Why a stream that had begun ended badly.
    pub(crate) stream_error: Option<Code>,
    /// The answer is a stream: its timings stand in the last event.
    pub(crate) streaming: bool,
}

impl RequestContext {
    /// A request that has just come.
    pub(crate) fn new(id: Arc<str>) -> Self {
        Self { id, arrived: Instant::now(), notes: Arc::default() }
    }

    /// Changes the notes.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Notes)) {
        // Notes are plain values: what a panicking handler left behind is still worth logging.
        change(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The notes as they are.
    pub(crate) fn notes(&self) -> Notes {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whose images it can name, and whose cached work it can meet.
    pub(crate) fn scope(&self) -> Scope {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.owner.as_ref().map_or(Scope::EVERYONE, |owner| owner.scope)
    }

    /// Time since it came.
    pub(crate) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }
}

impl Notes {
    /// Adds the time that the fetch of one image took.
    pub(crate) fn add_fetch(&mut self, fetch: Duration) {
        self.fetch = Some(self.fetch.unwrap_or_default().max(fetch));
    }

    /// Adds the time that one image took.
    pub(crate) fn add_decode(&mut self, decode: Duration) {
        self.decode = Some(self.decode.unwrap_or_default().max(decode));
    }

    /// Adds the time that one item took.
    pub(crate) fn add_task(&mut self, timing: TaskTiming) {
        let longest = self.task.unwrap_or_default();
        self.task = Some(TaskTiming {
            queue: longest.queue.max(timing.queue),
            vision: longest.vision.max(timing.vision),
            text: longest.text.max(timing.text),
        });
    }
}
