//! What can be wrong with an image or a text that a client sent. `http/error` gives each its code and status.

use crate::document::DocumentError;
use crate::task::ImageFormat;

/// Why an input was refused. Messages say what is accepted and carry no internals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The string where an image is wanted is none of the accepted kinds, or broken (`invalid_request`).
    #[error("not an image value: {problem}")]
    InvalidImageValue {
        /// What is wrong and what to send.
        problem: &'static str,
    },
    /// The file is larger than accepted (`payload_too_large`).
    #[error("the image file has {bytes} bytes, at most {max_bytes} are accepted")]
    ImageFileTooLarge {
        /// Bytes of the file, known or computed before decoding base64.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The file has no bytes, so no format either (`unsupported_image_format`).
    #[error("the file is empty; send the bytes of a jpeg, png, webp, gif or bmp image")]
    EmptyImageFile,
    /// The first bytes are of no accepted format (`unsupported_image_format`).
    #[error("the image format is not supported, accepted are jpeg, png, webp, gif and bmp")]
    UnsupportedImageFormat,
    /// The file is corrupt or ends before its picture does (`undecodable_image`).
    #[error("the {} image cannot be decoded: {problem}", format.name())]
    UndecodableImage {
        /// The format that its first bytes announce.
        format: ImageFormat,
        /// What the decoder says.
        problem: String,
    },
    /// More pixels than accepted, or a side too long (`image_too_large`).
    #[error(
        "the image has {width}x{height} pixels, at most {max_pixels} pixels and {max_side} a side are accepted"
    )]
    ImageTooLarge {
        /// Width in pixels as stored.
        width: u32,
        /// Height in pixels as stored.
        height: u32,
        /// Most pixels.
        max_pixels: u64,
        /// Longest side.
        max_side: u32,
    },
    /// Within the pixel limits, but its decoded form takes too much memory (`image_too_large`).
    #[error("the decoded image would take {bytes} bytes, at most {max_bytes} are accepted")]
    DecodedImageTooLarge {
        /// Bytes of the decoded picture.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The system has no memory for the picture at present (`overloaded`).
    #[error("there is no memory for this image at present; try again later")]
    OutOfMemory {
        /// Bytes that could not be had.
        bytes: u64,
    },
    /// The decode was ended from outside, because nobody waits for it any more. No client sees this.
    #[error("the image was not wanted any more")]
    Stopped,
    /// More characters or bytes than accepted (`text_too_long`).
    #[error("the text has {length} {unit}, at most {limit} are accepted")]
    TextTooLong {
        /// How long it is.
        length: usize,
        /// The limit.
        limit: usize,
        /// What is counted: "characters", "bytes" or "tokens".
        unit: &'static str,
    },
    /// Characters that no text holds (`invalid_request`).
    #[error("the text contains the control character U+{character:04X} at byte {position}")]
    InvalidText {
        /// The character.
        character: u32,
        /// Its place in the text, in bytes.
        position: usize,
    },
    /// The tokenizer failed on this text (`internal_error`).
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// Why a tokenizer could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Neither `tokenizer.json` nor `vocab.txt` in the directory.
    #[error("no tokenizer.json and no vocab.txt in {0}")]
    NotFound(std::path::PathBuf),
    /// A file cannot be read, or is not what its name says.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A file's content is not a tokenizer's.
    #[error("{path} {problem}")]
    Invalid {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl TokenizerError {
    /// True where the checkpoint's content is at fault, and not the machine that reads it.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::NotFound(_) | Self::Invalid { .. } => true,
        }
    }
}
