//! BLIP: configuration, weights, towers, heads, search, and the backend that the engine drives.
//!
//! - [`config`], [`preprocessor`]: read the checkpoint's own configuration files.
//! - [`load`]: reads weight files.
//! - [`ops`]: the fused operations, implemented by candle and by our CPU kernels.
//! - `positions`: position embeddings for other image sizes.
//! - `vision`, `text`, `heads`: the towers and the LM head, with one definition for every device and dtype.
//! - `checkpoint`: the four model classes, assembled from towers and heads.
//! - [`search`]: greedy search, beam search and sampling, over logits on the host.
//! - `group`: the sequences being decoded and their KV caches.
//! - [`backend`]: implements the engine's `Backend` trait.

pub mod backend;
mod checkpoint;
pub mod config;
mod error;
mod group;
mod heads;
pub mod load;
pub mod ops;
mod positions;
pub mod preprocessor;
pub mod search;
#[cfg(test)]
mod tests;
mod text;
mod vision;

pub use backend::{BlipBackend, LoadEvent, Loaded, ModelSpec, Placement, Vocabulary, check};
pub use error::LoadError;
