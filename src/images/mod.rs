//! From a picture file or an image id to prepared pixels: the decoding pool, the pixel cache, single flight.
//!
//! ```text
//! resolve ─ id? (SHA-256, large files on the pool) ─ cached? ─ in flight? join ─ else queue ─> pool thread:
//!           anyone still waiting? ─ header ─ bytes from the budget ─ decode ─ resize ─> cache, all who wait
//! ```
//!
//! - [`Images`]: what `http` holds.
//! - `pool`: few threads below the worker's priority. `queue`: what waits for them, clients and calls in turns. `jobs`:
//!   what runs there.
//! - `flights`: identical images in progress are one piece of work, also when the first who asked has left.
//! - `workshop`: the work on one file; the only place where a decoder's panic is caught.
//! - `budget`: bytes that decodes may hold together. `memory`: what the process holds in truth, above a mark nothing more
//!   is decoded. `cache`: prepared pixels, bounded in bytes and time.
//!
//! Time: an image is waited for until its request's deadline and no clock of its own runs. How long a decode takes on
//! the wall says how busy the server is (these threads yield to the worker), not what is wrong with the file; what a
//! file may cost is bounded by the limits that `input` checks from its header, before any pixel.
//!
//! No limits of single files (`input` has them), no fetching of addresses (`fetch`), no model.

mod budget;
mod cache;
mod error;
mod flights;
mod jobs;
mod memory;
mod pool;
mod queue;
mod resolve;
mod settings;
#[cfg(test)]
mod tests;
mod workshop;

pub use error::ImagesError;
pub use resolve::{ImageSource, Images, Resolved};
pub use settings::{ImagesSettings, InvalidImagesSetting};

use crate::task::{ImageId, PreparedImage, Preprocessing, Scope};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What makes two pieces of work the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    scope: Scope,
    id: ImageId,
    preprocessing: Preprocessing,
}

/// A prepared image and what it took.
#[derive(Debug, Clone)]
struct Prepared {
    image: PreparedImage,
    decode: Duration,
    preprocess: Duration,
}

/// No code panics while it holds one of this folder's locks, so a poisoned one still guards sound data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
