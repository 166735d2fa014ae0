//! Why a TensorFlow weight file cannot be read. The messages are shown after "FILE is not a readable weights file: ".

use std::io;

/// What is wrong with a weight file.
#[derive(Debug, thiserror::Error)]
pub enum TensorFlowError {
    /// The operating system could not read the file.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// The file does not start with the signature of HDF5.
    #[error("it is not an HDF5 file; download it again")]
    NotHdf5,
    /// The file is truncated or inconsistent, or refers to something outside of it.
    #[error("it is cut off or damaged; download it again")]
    Damaged,
    /// A dataset has more values than the file holds for it.
    #[error(
        "it does not hold all values of dataset {name:?}: it is cut off or damaged; download it again"
    )]
    Truncated {
        /// Path of the dataset in the file.
        name: String,
    },
    /// The file uses a part of HDF5 that Keras does not use for weights.
    #[error(
        "it has {what}, which Keras does not write; save it again with transformers 4 and its class, such as \
         TFBlipForConditionalGeneration.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
    )]
    Unsupported {
        /// The part of HDF5, with its article if it needs one.
        what: &'static str,
    },
    /// A count or size is far larger than in any BLIP checkpoint.
    #[error("it has more than {limit} {what}, far more than any BLIP checkpoint")]
    TooLarge {
        /// What is counted, in the plural.
        what: &'static str,
        /// Maximum number that is accepted.
        limit: u64,
    },
    /// Several datasets share their values, so reading all of them would take more memory than the file's size.
    #[error("its datasets claim more bytes than the file has; download it again")]
    Shared,
    /// Two datasets have the same name in PyTorch's state dict.
    #[error("two of its datasets are the tensor {name:?}; save only the weights of one model")]
    Duplicate {
        /// Name of the tensor in the state dict.
        name: String,
    },
    /// The file holds no datasets of numbers.
    #[error("it holds no weights")]
    NoWeights,
}
