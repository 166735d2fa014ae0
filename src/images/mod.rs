//! Turns a picture file or an image id into prepared pixels, with a decoding thread pool, a pixel cache and single
//! flight.
//!
//! ```text
//! resolve ─ id? (SHA-256; large files on the pool) ─ cached? ─ in flight? join ─ else queue ─> pool thread:
//!           anyone still waiting? ─ header ─ bytes from the budget ─ decode ─ resize ─> cache, all waiters
//! ```
//!
//! - [`Images`]: the handle that `http` holds.
//! - `pool`: a few threads with a lower priority than the inference worker. `queue`: the jobs that wait for a thread,
//!   in an order that is fair to clients and calls. `jobs`: the two kinds of job that the threads run.
//! - `in_flight`: single flight. Identical images in progress are decoded once, even if the first waiter leaves.
//! - `processor`: does the work on one file, and catches the panics of decoders.
//! - `budget`: limits the total number of bytes that the decodes in progress use. `memory`: load shedding; above a
//!   high-water mark of resident memory, new decodes are rejected. `cache`: prepared pixels, bounded in bytes and in
//!   time to live.
//!
//! Deadlines: a request waits for an image until its own deadline, and a decode has no timeout of its own. A decode
//! that takes long shows that the server is busy (decoding threads yield to the worker), not that the file is bad. The
//! cost of a file is bounded by the limits that `input` checks from its header, before it decodes any pixel.
//!
//! Not here: limits on single files (`input`), fetching by URL (`fetch`), the model.

mod budget;
mod cache;
mod error;
mod in_flight;
mod jobs;
mod memory;
mod pool;
mod processor;
mod queue;
mod resolve;
mod settings;
#[cfg(test)]
mod tests;

pub use error::ImagesError;
pub use resolve::{ImageSource, Images, Resolved};
pub use settings::ImagesSettings;

use crate::task::{ImageId, PreparedImage, Preprocessing, Scope};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Identity of a decode, for the cache and single flight. Equal keys share one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    scope: Scope,
    id: ImageId,
    preprocessing: Preprocessing,
}

/// A prepared image, and when and how long it was decoded and resized.
#[derive(Debug, Clone)]
struct Prepared {
    image: PreparedImage,
    began: Instant,
    decode: Duration,
    preprocess: Duration,
}

/// Locks a mutex, even if it is poisoned: no code panics while it holds one of this folder's locks, so the data is
/// consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
