//! Where weights come from: a directory, or the Hugging Face hub and its cache on disk.
//!
//! - [`ModelSource`], [`CheckpointSource`]: parse `[NAME=]SRC`, the form in which the operator specifies a model.
//! - [`CheckpointFiles`]: the paths of a checkpoint's files, found in a directory. The caller reads the files.
//! - [`fetch`]: resolves a hub id to a directory in the cache that contains the checkpoint. Looks up the commit of the
//!   revision, and downloads missing files to the cache, resuming interrupted downloads and verifying checksums.
//! - [`convert_to_safetensors`]: converts `pytorch_model.bin` or `tf_model.h5` to `model.safetensors` in the same
//!   directory.
//!
//! Called by `app` and by the commands `download` and `convert`. Does not read the environment: all settings come from
//! [`HubSettings`].
//!
//! Why this folder does not use the `hf-hub` crate: since 1.0 that crate always depends on `hf-xet`, which brings its
//! own runtime, its own caches and some eighty packages. The hub also serves the same files over plain HTTP with
//! ranges, so this server needs only one listing per revision, and one HEAD and one ranged GET per file. The cache
//! layout is the same, so Python tools and this server share downloads.

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
mod towers;

pub use checkpoint::{CheckpointFiles, TokenizerFiles, WeightFiles};
pub use client::install_tls_provider;
pub use convert::{Converted, convert_to_safetensors};
pub use download::{fetch, fetch_file, locate, look_up};
pub use error::HubError;
pub use progress::DownloadProgress;
pub use settings::{HubSettings, Retry, Token};
pub use source::{CheckpointSource, HubSource, ModelSource};
