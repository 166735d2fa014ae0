//! Where weights come from: a directory, or the Hugging Face hub and its cache on disk.
//!
//! - [`ModelSource`], [`Source`]: what `[NAME=]SRC` means.
//! - [`CheckpointFiles`]: the files of one checkpoint, found in a directory. Paths only; reading the files is up to the
//!   caller.
//! - [`fetch`]: resolves a hub id to such a directory: revision to commit; missing files are downloaded, resumed,
//!   verified, cached.
//! - [`convert_to_safetensors`]: converts `pytorch_model.bin` to `model.safetensors` in the same directory.
//!
//! Called by `app` and by the commands `download` and `convert`. Does not read the environment: all settings come from
//! [`HubSettings`].
//!
//! Why not the `hf-hub` crate: since 1.0 it always brings `hf-xet`, with its own runtime, caches and some eighty
//! packages, for a protocol whose files the hub also serves over plain HTTP with ranges. This server needs one listing,
//! one HEAD and one ranged GET per file. The cache layout is the same, so Python tools and this server share downloads.

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
