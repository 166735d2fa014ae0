//! What `http` holds: an image, by its bytes or its id, to prepared pixels.

use super::cache::{Lookup, PixelCache};
use super::flights::{Boarding, Flight, Flights};
use super::jobs::{DecodeJob, HashJob};
use super::memory::MemoryMark;
use super::pool::{Lane, Pool, QueueFull};
use super::workshop::{Decode, Workshop};
use super::{ImagesError, ImagesSettings, Key};
use crate::fairness::CallId;
use crate::input::{ImageHeader, InputError, InputSettings, decode, image_id};
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::resident_bytes;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Files up to this size are hashed where they are: 64 KiB take 0.2 ms without SHA instructions, less than a hop.
const HASHED_INLINE_BYTES: usize = 64 << 10;

/// A file's id and, of one that was hashed on the pool, what its header says.
type Identified = (ImageId, Option<Result<ImageHeader, InputError>>);

/// An image as it was sent.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A picture file.
    Bytes(Bytes),
    /// An image that was sent before.
    Id(ImageId),
}

/// An image, ready for the vision tower.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The image.
    pub image: PreparedImage,
    /// Time of its decoding, header included; zero when it was cached.
    pub decode: Duration,
    /// Time of its resizing; zero when it was cached.
    pub preprocess: Duration,
    /// True when no work was done.
    pub cached: bool,
}

/// The way from image values to pixels. Clones share one pool and one cache.
#[derive(Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

/// Held by every clone of [`Images`] and by every job on the pool.
pub(super) struct Shared {
    pool: Pool,
    pub(super) cache: PixelCache,
    flights: Arc<Flights>,
    pub(super) workshop: Workshop,
    memory: MemoryMark,
}

impl Images {
    /// Starts the decoding threads. The settings have passed their checks.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        settings: &ImagesSettings,
        input_settings: InputSettings,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::start_with(settings, input_settings, metrics, Box::new(decode))
    }

    /// [`start`](Self::start) with another decoder.
    pub(super) fn start_with(
        settings: &ImagesSettings,
        input_settings: InputSettings,
        metrics: Arc<Metrics>,
        decode: Box<Decode>,
    ) -> io::Result<Self> {
        let shared = Shared {
            pool: Pool::start(settings.decode_threads, settings.decode_queue)?,
            cache: PixelCache::new(settings, Arc::clone(&metrics)),
            flights: Arc::default(),
            workshop: Workshop::new(input_settings, settings.decode_budget_bytes, metrics, decode),
            memory: MemoryMark::new(settings.memory_high_water_bytes, resident_bytes),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Prepares an image of `call` for a tower's input. Dropping the future (at the request's deadline) is leaving: what
    /// nobody waits for any more is taken out of the queue, with its file.
    ///
    /// # Errors
    /// `Input` when the file is at fault, `NotFound` for an unknown id, `Overloaded`.
    pub async fn resolve(
        &self,
        source: ImageSource,
        preprocessing: Preprocessing,
        scope: Scope,
        call: CallId,
    ) -> Result<Resolved, ImagesError> {
        // Dropped after what is awaited: then that may be wanted by nobody any more.
        let mut sweeper = Sweeper { pool: &self.shared.pool, armed: true };
        let result = self.find(source, preprocessing, scope, call).await;
        sweeper.armed = false;
        result
    }

    async fn find(
        &self,
        source: ImageSource,
        preprocessing: Preprocessing,
        scope: Scope,
        call: CallId,
    ) -> Result<Resolved, ImagesError> {
        let shared = &self.shared;
        let boarding = match source {
            ImageSource::Id(id) => {
                let key = Key { scope, id, preprocessing };
                shared.flights.join(&key, || shared.cache.get(&key)).ok_or_else(|| {
                    shared.cache.count(Lookup::Miss);
                    ImagesError::NotFound(id)
                })?
            }
            ImageSource::Bytes(file) => {
                let (id, inspected) = self.identify(&file, call).await?;
                let key = Key { scope, id, preprocessing };
                match shared.flights.board(key, || shared.cache.get(&key)) {
                    Boarding::Opened(passenger, flight) => {
                        shared.cache.count(Lookup::Miss);
                        let inspected =
                            inspected.or_else(|| shared.workshop.inspect_here(&file, id));
                        match inspected.transpose() {
                            Ok(header) => self.enqueue(flight, key, (file, header), call)?,
                            Err(error) => flight.land(Err(error.into())),
                        }
                        return passenger.arrival().await.map(Resolved::fresh);
                    }
                    boarding @ (Boarding::Cached(_) | Boarding::Joined(_)) => boarding,
                }
            }
        };
        match boarding {
            Boarding::Cached(image) => {
                shared.cache.count(Lookup::Hit);
                Ok(Resolved::cached(image))
            }
            Boarding::Joined(passenger) | Boarding::Opened(passenger, _) => {
                shared.cache.count(Lookup::Joined);
                passenger.arrival().await.map(Resolved::fresh)
            }
        }
    }

    /// How long the last of `files` files of a call that comes now would wait for a decoding thread, by estimate; no time
    /// for images that are held.
    pub fn wait(&self, call: CallId, files: usize) -> Duration {
        self.shared.pool.wait(call, files)
    }

    /// The file's id; a large file is hashed on the pool, in turn with what waits there for decoding, and its header is
    /// read there, too.
    async fn identify(&self, file: &Bytes, call: CallId) -> Result<Identified, ImagesError> {
        if crate::faults::at("images::identify") {
            return Err(ImagesError::Overloaded);
        }
        let (bytes, max_bytes) = (file.len(), self.shared.workshop.settings.max_image_bytes);
        if bytes > max_bytes {
            return Err(InputError::ImageFileTooLarge { bytes, max_bytes }.into());
        }
        if bytes <= HASHED_INLINE_BYTES {
            return Ok((image_id(file), None));
        }
        let (sender, id) = oneshot::channel();
        let job =
            Box::new(HashJob { shared: Arc::clone(&self.shared), file: file.clone(), sender });
        self.shared.pool.submit(job, Lane::Hashes, call)?;
        let (id, header) = id.await.map_err(|_| ImagesError::Overloaded)?;
        Ok((id, Some(header)))
    }

    fn enqueue(
        &self,
        flight: Flight,
        key: Key,
        (file, header): (Bytes, Option<ImageHeader>),
        call: CallId,
    ) -> Result<(), QueueFull> {
        if crate::faults::at("images::enqueue") {
            return Err(QueueFull);
        }
        if self.shared.memory.is_passed(Instant::now()) {
            let rejected = &self.shared.workshop.metrics.queue_rejected_total;
            rejected.with_label_values(&["memory"]).inc();
            return Err(QueueFull);
        }
        let shared = Arc::clone(&self.shared);
        let job = Box::new(DecodeJob { shared, flight, key, file, header });
        self.shared.pool.submit(job, Lane::Decodes, call)
    }
}

/// Takes what nobody wants any more out of the queue when somebody leaves before the end.
struct Sweeper<'pool> {
    pool: &'pool Pool,
    armed: bool,
}

impl Drop for Sweeper<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.pool.sweep();
        }
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Images")
    }
}

impl Resolved {
    fn cached(image: PreparedImage) -> Self {
        Self { image, decode: Duration::ZERO, preprocess: Duration::ZERO, cached: true }
    }

    fn fresh(prepared: super::Prepared) -> Self {
        let super::Prepared { image, decode, preprocess } = prepared;
        Self { image, decode, preprocess, cached: false }
    }
}

impl From<QueueFull> for ImagesError {
    fn from(_: QueueFull) -> Self {
        Self::Overloaded
    }
}
