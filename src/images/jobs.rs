//! What runs on the pool: hashing a file, and making pixels of one.

use super::flights::Flight;
use super::pool::{Done, Job};
use super::resolve::Shared;
use super::{ImagesError, Key};
use crate::input::image_id;
use crate::task::ImageId;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Tells the id of a file.
pub(super) struct HashJob {
    pub(super) file: Bytes,
    pub(super) sender: oneshot::Sender<ImageId>,
}

/// Prepares a file for all who have boarded its flight.
pub(super) struct DecodeJob {
    pub(super) shared: Arc<Shared>,
    pub(super) flight: Flight,
    pub(super) key: Key,
    pub(super) file: Bytes,
}

impl Job for HashJob {
    fn is_wanted(&self) -> bool {
        !self.sender.is_closed()
    }

    fn run(self: Box<Self>) -> Done {
        if self.sender.is_closed() {
            return Done::Early;
        }
        // The receiver may leave meanwhile; then nobody needs the id.
        let _ = self.sender.send(image_id(&self.file));
        Done::Work
    }
}

impl Job for DecodeJob {
    fn is_wanted(&self) -> bool {
        self.flight.has_passengers()
    }

    fn run(self: Box<Self>) -> Done {
        let Self { shared, flight, key, file } = *self;
        if !flight.is_wanted() {
            return Done::Early;
        }
        let result = shared.workshop.prepare(&file, key);
        let done = if result.is_ok() { Done::Work } else { Done::Early };
        if let Ok(prepared) = &result {
            shared.cache.insert(key, prepared.image.clone());
        }
        flight.land(result.map_err(ImagesError::Input));
        done
    }
}
