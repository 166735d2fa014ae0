//! Why a checkpoint cannot be loaded. Every text says which file or tensor, and what was expected.

use std::path::PathBuf;

use crate::engine::backend::BackendError;

/// A checkpoint that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A clone without Git LFS has pointers in place of its large files.
    #[error("{path} is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A `.bin` file is no zip archive, which torch has written since 1.6.
    #[error(
        "{path} is not in the format of torch 1.6 or later; save it again with a current torch: \
         torch.save(torch.load(PATH, map_location=\"cpu\"), PATH)"
    )]
    OldPickle {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file does not have the shape of its kind.
    #[error("{path} is not valid: {detail}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
    /// The configuration asks for something that BLIP does not have.
    #[error("{path}: {field} is {value}; accepted: {accepted}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field, as a path.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// A weights file is not what its name says, or is cut off.
    #[error("{path} is not a readable weights file: {detail}")]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        detail: String,
    },
    /// A tensor that the model needs is in none of the files.
    #[error("tensor {name} {expected:?} is missing from {files}")]
    MissingTensor {
        /// Its name in transformers' state dict.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The files that were searched.
        files: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor {name} in {path} has shape {found:?}, the configuration implies {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// Its file.
        path: PathBuf,
    },
    /// A tensor is not of floats.
    #[error("tensor {name} in {path} holds {found}, floats are needed")]
    TensorDtype {
        /// Its name.
        name: String,
        /// What it holds.
        found: String,
        /// Its file.
        path: PathBuf,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor {name} in {path} holds NaN or infinite values")]
    NonFinite {
        /// Its name.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// The device cannot be used or has no room.
    #[error("device {device} cannot be used: {detail}")]
    Device {
        /// The device.
        device: String,
        /// Why.
        detail: String,
    },
    /// Bringing weights to the device failed.
    #[error("loading weights failed")]
    Backend(#[from] BackendError),
}
