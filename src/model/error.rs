//! Errors of loading a checkpoint. Every message about a checkpoint names the file or tensor and says what was
//! expected.

use std::path::PathBuf;

use crate::document::DocumentError;
use crate::engine::backend::BackendError;

/// Why a checkpoint cannot be loaded or served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read, does not have the format that its name indicates, or asks for a feature that is not
    /// supported.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The image size that is set for a model does not fit its patches.
    #[error(
        "image_size is {value}; accepted: a multiple of {patch}, the model's patch size, from {patch} to {most}"
    )]
    ImageSize {
        /// The image size that is set.
        value: u32,
        /// Side of a patch in pixels.
        patch: usize,
        /// The largest accepted size.
        most: usize,
    },
    /// An image size is set for a model that reads no images.
    #[error(
        "image_size is set, but the model is a BlipTextModel, which reads no images; remove it"
    )]
    ImageSizeOfText,
    /// A `.bin` file has the format that torch wrote before version 1.6, which introduced zip archives.
    #[error(
        "{path} is not in the format of torch 1.6 or later; save it again with a current torch: \
         torch.save(torch.load(PATH, map_location=\"cpu\"), PATH)"
    )]
    OldPickle {
        /// The file in the old format.
        path: PathBuf,
    },
    /// A weights file does not have the format that its name indicates, or is truncated.
    #[error("{path} is not a readable weights file: {detail}")]
    WeightsFile {
        /// The weights file that cannot be read.
        path: PathBuf,
        /// What is wrong with the file, for the message.
        detail: String,
    },
    /// None of the files contains a tensor that the model needs.
    #[error(
        "tensor {name} {expected:?} is missing from {files}; the weights are incomplete, or of another class or size than \
         config.json says: copy both from the same checkpoint"
    )]
    MissingTensor {
        /// Name of the tensor in transformers' state dict.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The files that were searched, separated by commas.
        files: String,
    },
    /// A tensor's shape differs from the shape that the configuration implies.
    #[error("tensor {name} in {path} has shape {found:?}, the configuration implies {expected:?}")]
    TensorShape {
        /// Name of the tensor in transformers' state dict.
        name: String,
        /// The tensor's shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The file that holds the tensor.
        path: PathBuf,
    },
    /// A tensor's elements are not floats.
    #[error("tensor {name} in {path} holds {found}, floats are needed")]
    TensorDtype {
        /// Name of the tensor in transformers' state dict.
        name: String,
        /// The element type of the tensor in the file.
        found: String,
        /// The file that holds the tensor.
        path: PathBuf,
    },
    /// A tensor contains NaN or infinity.
    #[error("tensor {name} in {path} holds NaN or infinite values")]
    NonFinite {
        /// Name of the tensor in transformers' state dict.
        name: String,
        /// The file that holds the tensor.
        path: PathBuf,
    },
    /// The device cannot be used, or does not have enough memory.
    #[error("device {device} cannot be used: {detail}")]
    Device {
        /// Name of the device, as configured.
        device: String,
        /// Why the device cannot be used, for the message.
        detail: String,
    },
    /// Transferring the weights to the device failed.
    #[error("loading weights failed")]
    Backend(#[from] BackendError),
}

impl LoadError {
    /// True if the content of the checkpoint is at fault; false if the fault lies with the machine that reads it.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::Device { .. } | Self::Backend(_) => false,
            Self::ImageSize { .. }
            | Self::ImageSizeOfText
            | Self::OldPickle { .. }
            | Self::WeightsFile { .. }
            | Self::MissingTensor { .. }
            | Self::TensorShape { .. }
            | Self::TensorDtype { .. }
            | Self::NonFinite { .. } => true,
        }
    }
}
