//! Why a checkpoint cannot be loaded. Every text says which file or tensor, and what was expected.

use std::path::PathBuf;

use crate::document::DocumentError;
use crate::engine::backend::BackendError;

/// A checkpoint that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read, is not what its name says, or asks for something that BLIP does not have.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A `.bin` file is no zip archive, which torch has written since 1.6.
    #[error(
        "{path} is not in the format of torch 1.6 or later; save it again with a current torch: \
         torch.save(torch.load(PATH, map_location=\"cpu\"), PATH)"
    )]
    OldPickle {
        /// The file.
        path: PathBuf,
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

impl LoadError {
    /// True where the checkpoint's content is at fault, and not the machine that reads it.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::Device { .. } | Self::Backend(_) => false,
            Self::OldPickle { .. }
            | Self::WeightsFile { .. }
            | Self::MissingTensor { .. }
            | Self::TensorShape { .. }
            | Self::TensorDtype { .. }
            | Self::NonFinite { .. } => true,
        }
    }
}
