//! BLIP: configuration, weights, towers, heads, search, and the backend that the engine drives.
//!
//! - [`config`], [`preprocessor`]: what a checkpoint says of itself.
//! - [`load`]: files to weights.
//! - [`ops`]: the fused operations; candle implements them.
//! - `vision`, `text`, `heads`: the towers, one definition for every device and dtype.
//! - `checkpoint`: the four classes, put together from towers and heads.
//! - [`search`]: greedy, beams, sampling, over logits on the host.
//! - `group`, [`backend`]: sequences being decoded, and the engine's seam.

pub mod backend;
mod checkpoint;
pub mod config;
mod error;
mod group;
mod heads;
pub mod load;
pub mod ops;
pub mod preprocessor;
pub mod search;
#[cfg(test)]
mod tests;
mod text;
mod vision;

pub use backend::{BlipBackend, LoadEvent, Loaded, ModelSpec, Placement, Vocabulary, check};
pub use error::LoadError;
