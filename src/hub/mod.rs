//! Where weights come from: a directory, or the Hugging Face hub and its cache on disk.
//!
//! - [`ModelSource`], [`Source`]: what `[NAME=]SRC` means.
//! - [`CheckpointFiles`]: the files of one checkpoint, found in a directory. Paths only; who reads them is not our business.
//! - [`fetch`]: a hub id to such a directory: revision to commit, missing files downloaded, resumed, verified, cached.
//! - [`convert_to_safetensors`]: `pytorch_model.bin` to `model.safetensors` beside it.
//!
//! Called by `app` and by the commands `download` and `convert`. Reads no environment: everything arrives in [`HubSettings`].
//!
//! Why not the `hf-hub` crate: since 1.0 it always brings `hf-xet` with its own runtime, caches and some eighty
//! packages for a protocol that the hub also serves as plain HTTP with ranges. What is needed here is one listing,
//! one HEAD and one ranged GET per file; the cache layout is the same, so Python tools and this server share downloads.

mod blob;
mod cache;
mod checkpoint;
mod client;
mod convert;
mod download;
mod error;
mod progress;
mod settings;
mod source;

pub use checkpoint::{CheckpointFiles, TokenizerFiles, WeightFiles};
pub use client::install_tls_provider;
pub use convert::{Converted, convert_to_safetensors};
pub use download::{fetch, fetch_file, locate};
pub use error::HubError;
pub use progress::Progress;
pub use settings::{HubSettings, Retry, Token};
pub use source::{HubSource, ModelSource, Source};
