//! [`Images`], the handle that `http` holds: resolves an image, given by its bytes or its id, to prepared pixels.

use super::cache::{CacheResult, PixelCache};
use super::in_flight::{Flight, InFlight, JoinOrStart};
use super::jobs::{DecodeJob, HashJob, JobContext};
use super::memory::HighWaterMark;
use super::pool::{Pool, QueueFull};
use super::processor::{Decode, FileProcessor};
use super::queue::Lane;
use super::{ImagesError, ImagesSettings, Key};
use crate::fairness::CallId;
use crate::input::{ImageHeader, InputError, InputSettings, decode, image_id};
use crate::platform;
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::resident_bytes;
use bytes::Bytes;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Maximum size in bytes of a file that is hashed on the caller's thread. Without SHA instructions, hashing 64 KiB
/// takes 0.2 ms, which is less than handing the file over to the pool takes.
const HASHED_INLINE_BYTES: usize = 64 << 10;

/// A file's id and, if the file was hashed on the pool, its header.
type Identified = (ImageId, Option<Result<ImageHeader, InputError>>);

/// An image in a request, given by its bytes or by its id.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// The bytes of a picture file.
    Bytes(Bytes),
    /// The id of an image that was sent before.
    Id(ImageId),
}

/// An image, ready for the vision tower.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The image with its prepared pixels.
    pub image: PreparedImage,
    /// When the decoding began, after the wait for a thread and for memory; `None` if the image was cached. It may be
    /// earlier than the request, which then shares the work of another.
    pub began: Option<Instant>,
    /// Duration of decoding, excluding the wait for a thread or for memory; zero if the image was cached.
    pub decode: Duration,
    /// Duration of resizing; zero if the image was cached.
    pub preprocess: Duration,
    /// True if the pixels came from the cache.
    pub cached: bool,
}

/// A handle that turns images into prepared pixels. Clones share one thread pool and one cache.
#[derive(Clone)]
pub struct Images {
    shared: Arc<ImagesInner>,
}

/// The state that all clones of [`Images`] share.
struct ImagesInner {
    pool: Pool,
    in_flight: Arc<InFlight>,
    memory: HighWaterMark,
    /// The cache and the processor, which the jobs on the pool share as well.
    context: Arc<JobContext>,
}

impl Images {
    /// Starts the decoding threads. The settings must have passed their checks.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(
        settings: &ImagesSettings,
        input_settings: InputSettings,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        Self::start_with(settings, input_settings, metrics, Box::new(decode))
    }

    /// Like [`start`](Self::start), but with the given decoder.
    pub(crate) fn start_with(
        settings: &ImagesSettings,
        input_settings: InputSettings,
        metrics: Arc<Metrics>,
        decode: Box<Decode>,
    ) -> io::Result<Self> {
        let shared = ImagesInner {
            pool: Pool::start(settings.decode_threads, settings.decode_queue)?,
            in_flight: Arc::default(),
            memory: HighWaterMark::new(
                settings.memory_high_water_bytes.map(NonZeroU64::get),
                resident_bytes,
            ),
            context: Arc::new(JobContext {
                cache: PixelCache::new(settings, Arc::clone(&metrics)),
                processor: FileProcessor::new(
                    input_settings,
                    settings.decode_budget_bytes,
                    metrics,
                    decode,
                ),
            }),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the prepared pixels of an image that `call` uses. Dropping the future, for example at the request's
    /// deadline, ends the wait. A job without waiters is removed from the queue, together with its file.
    ///
    /// # Errors
    /// `Input` if the file is at fault; `NotFound` for an unknown id; `Overloaded` if the queue is full or memory is
    /// above its high-water mark.
    pub async fn resolve(
        &self,
        source: ImageSource,
        preprocessing: Preprocessing,
        scope: Scope,
        call: CallId,
    ) -> Result<Resolved, ImagesError> {
        // The sweeper must be dropped after the awaited future, because the job loses its waiter only when that future
        // is dropped.
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
        let (in_flight, JobContext { cache, processor }) =
            (&self.shared.in_flight, &*self.shared.context);
        let joined = match source {
            ImageSource::Id(id) => {
                let key = Key { scope, id, preprocessing };
                in_flight.join(&key, || cache.get(&key)).ok_or_else(|| {
                    cache.count(CacheResult::Miss);
                    ImagesError::NotFound(id)
                })?
            }
            ImageSource::Bytes(file) => {
                let (id, inspected) = self.identify(&file, call).await?;
                let key = Key { scope, id, preprocessing };
                match in_flight.join_or_start(key, || cache.get(&key)) {
                    JoinOrStart::Started(waiter, flight) => {
                        cache.count(CacheResult::Miss);
                        let inspected = inspected.or_else(|| processor.inspect_here(&file, id));
                        match inspected.transpose() {
                            Ok(header) => {
                                let job = self.enqueue(flight, key, (file, header), call)?;
                                for joined in waiter.set_job(job) {
                                    self.shared.pool.join(job, joined);
                                }
                            }
                            Err(error) => flight.complete(Err(error.into())),
                        }
                        return waiter.wait().await.map(Resolved::fresh);
                    }
                    joined @ (JoinOrStart::Cached(_) | JoinOrStart::Joined(_)) => joined,
                }
            }
        };
        match joined {
            JoinOrStart::Cached(image) => {
                cache.count(CacheResult::Hit);
                Ok(Resolved::cached(image))
            }
            JoinOrStart::Joined(waiter) | JoinOrStart::Started(waiter, _) => {
                cache.count(CacheResult::Joined);
                if let Some(job) = waiter.join(call) {
                    self.shared.pool.join(job, call);
                }
                waiter.wait().await.map(Resolved::fresh)
            }
        }
    }

    /// Returns the number of bytes of the files that wait for a decoding thread.
    #[cfg(test)]
    pub(crate) fn held_file_bytes(&self) -> usize {
        self.shared.pool.held_file_bytes()
    }

    /// Estimates how long the last of `files` files would wait for a decoding thread if their call arrived now. Images
    /// given by their ids do not count, because they need no thread.
    pub fn estimated_wait(&self, call: CallId, files: usize) -> Duration {
        self.shared.pool.estimated_wait(call, files)
    }

    /// Returns the file's id. A large file is hashed on the pool, where hash jobs take turns with decodes. The pool
    /// also reads the header of such a file, which is returned with the id.
    async fn identify(&self, file: &Bytes, call: CallId) -> Result<Identified, ImagesError> {
        if crate::faults::at("images::identify") {
            return Err(ImagesError::Overloaded);
        }
        let (bytes, max_bytes) =
            (file.len(), self.shared.context.processor.settings.max_image_bytes);
        if bytes > max_bytes {
            return Err(InputError::ImageFileTooLarge { bytes, max_bytes }.into());
        }
        if bytes <= HASHED_INLINE_BYTES {
            return Ok((image_id(file), None));
        }
        let (sender, id) = oneshot::channel();
        let job = Box::new(HashJob {
            context: Arc::clone(&self.shared.context),
            file: file.clone(),
            sender,
        });
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
    ) -> Result<u64, QueueFull> {
        if crate::faults::at("images::enqueue") {
            return Err(QueueFull);
        }
        if self.shared.memory.is_exceeded(platform::now()) {
            let rejected = &self.shared.context.processor.metrics.queue_rejected_total;
            rejected.with_label_values(&["memory"]).inc();
            return Err(QueueFull);
        }
        let context = Arc::clone(&self.shared.context);
        let job = Box::new(DecodeJob { context, flight, key, file, header });
        self.shared.pool.submit(job, Lane::Decodes, call)
    }
}

/// A waiter's guard. If the waiter leaves before its result arrives, the guard removes the jobs without waiters from
/// the queue.
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
        Self {
            image,
            began: None,
            decode: Duration::ZERO,
            preprocess: Duration::ZERO,
            cached: true,
        }
    }

    fn fresh(prepared: super::Prepared) -> Self {
        let super::Prepared { image, began, decode, preprocess } = prepared;
        Self { image, began: Some(began), decode, preprocess, cached: false }
    }
}

impl From<QueueFull> for ImagesError {
    fn from(_: QueueFull) -> Self {
        Self::Overloaded
    }
}
