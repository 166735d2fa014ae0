//! The two kinds of jobs that the pool runs: hashing a file, and decoding a file to prepared pixels. `resolve` creates
//! them.

use super::cache::PixelCache;
use super::in_flight::Flight;
use super::processor::FileProcessor;
use super::queue::{Job, JobOutcome};
use super::{ImagesError, Key};
use crate::input::{ImageHeader, InputError, image_id};
use crate::task::ImageId;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What all jobs share: the processor that reads their files and the cache that stores their pixels.
pub(super) struct JobContext {
    pub(super) cache: PixelCache,
    pub(super) processor: FileProcessor,
}

/// A job that computes the id of a file (its SHA-256) and reads its header.
pub(super) struct HashJob {
    pub(super) context: Arc<JobContext>,
    pub(super) file: Bytes,
    pub(super) sender: oneshot::Sender<(ImageId, Result<ImageHeader, InputError>)>,
}

/// A job that decodes and resizes a file for all waiters of its flight.
pub(super) struct DecodeJob {
    pub(super) context: Arc<JobContext>,
    pub(super) flight: Flight,
    pub(super) key: Key,
    pub(super) file: Bytes,
    /// The file's header, if it has been read already.
    pub(super) header: Option<ImageHeader>,
}

impl Job for HashJob {
    fn is_wanted(&self) -> bool {
        !self.sender.is_closed()
    }

    #[cfg(test)]
    fn file_bytes(&self) -> usize {
        self.file.len()
    }

    fn run(self: Box<Self>) -> JobOutcome {
        if self.sender.is_closed() {
            return JobOutcome::EndedEarly;
        }
        let id = image_id(&self.file);
        let header = self.context.processor.inspect(&self.file, id);
        // Sending fails if the waiter has left in the meantime. In that case nobody needs the id.
        let _ = self.sender.send((id, header));
        JobOutcome::Completed
    }
}

impl Job for DecodeJob {
    fn work(&self) -> u64 {
        self.header.map_or(0, |header| header.work)
    }

    fn is_wanted(&self) -> bool {
        self.flight.has_waiters()
    }

    fn is_abandoned(&self) -> bool {
        !self.flight.is_wanted()
    }

    #[cfg(test)]
    fn file_bytes(&self) -> usize {
        self.file.len()
    }

    fn run(self: Box<Self>) -> JobOutcome {
        let Self { context, flight, key, file, header } = *self;
        let result = loop {
            if !flight.is_wanted() {
                return JobOutcome::EndedEarly;
            }
            match context.processor.prepare(&file, key, header, &|| !flight.has_waiters()) {
                // The decode stopped because all waiters had left. If another waiter has joined since then, the loop
                // decodes again; otherwise the check above ends the job.
                Err(InputError::Stopped) => {}
                result => break result,
            }
        };
        let done = if result.is_ok() { JobOutcome::Completed } else { JobOutcome::EndedEarly };
        if let Ok(prepared) = &result {
            context.cache.insert(key, prepared.image.clone());
        }
        flight.complete(result.map_err(ImagesError::Input));
        done
    }
}
