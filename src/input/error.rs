//! Errors for images and texts that clients send, and for loading tokenizers. `http/error` maps each [`InputError`] to
//! its error code and status.

use crate::document::DocumentError;
use crate::task::ImageFormat;

/// Why an input was rejected. Messages say what is accepted and reveal no internals.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The string sent as an image is malformed or is of none of the accepted kinds (`invalid_request`).
    #[error("invalid image value: {problem}")]
    InvalidImageValue {
        /// What is wrong and what to send instead.
        problem: &'static str,
    },
    /// The file exceeds the size limit (`payload_too_large`).
    #[error("the image file has {bytes} bytes; at most {max_bytes} are accepted")]
    ImageFileTooLarge {
        /// File size in bytes. For base64, it is computed from the length of the text before decoding.
        bytes: usize,
        /// The configured maximum size in bytes.
        max_bytes: usize,
    },
    /// The file has no bytes (`undecodable_image`).
    #[error("the file is empty; send the bytes of a {} image", accepted_formats())]
    EmptyImageFile,
    /// The string sent as an image holds no bytes (`invalid_request`, because the schema already excludes it).
    #[error("the file is empty; send the bytes of a {} image", accepted_formats())]
    EmptyImageValue,
    /// The first bytes match none of the accepted formats (`unsupported_image_format`).
    #[error("the image format is not supported; send a {} image", accepted_formats())]
    UnsupportedImageFormat,
    /// The file is corrupt or truncated (`undecodable_image`).
    #[error("the {} image cannot be decoded: {problem}", format.name())]
    UndecodableImage {
        /// The format indicated by the file's first bytes.
        format: ImageFormat,
        /// The reason, worded for the client.
        problem: String,
    },
    /// The picture exceeds the pixel count or side limit (`image_too_large`).
    #[error(
        "the image has {width}x{height} pixels; at most {max_pixels} pixels and {max_side} per side are accepted"
    )]
    ImageTooLarge {
        /// Width in pixels, before the orientation is applied.
        width: u32,
        /// Height in pixels, before the orientation is applied.
        height: u32,
        /// The configured maximum number of pixels.
        max_pixels: u64,
        /// The configured maximum side in pixels.
        max_side: u32,
    },
    /// The picture is within the pixel limits, but its decoded form takes too much memory (`image_too_large`).
    #[error("the decoded image would take {bytes} bytes; at most {max_bytes} are accepted")]
    DecodedImageTooLarge {
        /// Size of the decoded picture in bytes.
        bytes: u64,
        /// The configured maximum size in bytes.
        max_bytes: u64,
    },
    /// The system cannot allocate the memory for the input at the moment (`overloaded`).
    #[error("not enough memory for this input at the moment; try again later")]
    OutOfMemory {
        /// Size of the failed allocation in bytes.
        bytes: u64,
    },
    /// Decoding was cancelled because nobody is waiting for the result any more. No client sees this message.
    #[error("decoding of the image was cancelled")]
    Stopped,
    /// The text exceeds a limit in characters, bytes or tokens (`text_too_long`).
    #[error("the text has {length} {unit}; at most {limit} are accepted")]
    TextTooLong {
        /// Length of the text, in `unit`.
        length: usize,
        /// The maximum length, in `unit`.
        limit: usize,
        /// What is counted: "characters", "bytes" or "tokens".
        unit: &'static str,
    },
    /// The text contains a control character that is not allowed (`invalid_request`).
    #[error("the text contains the control character U+{character:04X} at byte {position}")]
    InvalidText {
        /// Code point of the control character.
        character: u32,
        /// Byte offset of the character in the text.
        position: usize,
    },
    /// The tokenizer failed on this text (`internal_error`).
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

pub(super) const TRUNCATED_FILE: &str = "the file ends before the image is complete";
pub(super) const DAMAGED_DATA: &str = "its data is damaged";
pub(super) const UNSUPPORTED_VARIANT: &str =
    "it uses a variant of its format that is not supported";
pub(super) const NO_PIXELS: &str = "it has no pixels";

/// Returns an [`InputError::UndecodableImage`] with this reason.
pub(super) fn undecodable(format: ImageFormat, problem: &str) -> InputError {
    InputError::UndecodableImage { format, problem: problem.to_owned() }
}

/// Returns the names of all formats as a list for messages, such as `jpeg, png or gif`.
fn accepted_formats() -> String {
    let [first @ .., last] = ImageFormat::ALL.map(ImageFormat::name);
    format!("{} or {last}", first.join(", "))
}

/// Why a tokenizer could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The directory has neither `tokenizer.json` nor `vocab.txt`.
    #[error("no tokenizer.json and no vocab.txt in {0}")]
    NotFound(std::path::PathBuf),
    /// A file cannot be read, is not a JSON object, or has a field with an invalid value.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The content of a file does not describe a usable tokenizer.
    #[error("{path} {problem}")]
    Invalid {
        /// Path of the file at fault.
        path: std::path::PathBuf,
        /// What is wrong, worded so that it continues a sentence that begins with the path.
        problem: String,
    },
}

impl TokenizerError {
    /// True if the content of the checkpoint is at fault; false if the operating system could not read a file.
    #[must_use]
    pub fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::NotFound(_) | Self::Invalid { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_format_is_answered_with_the_accepted_ones() {
        let accepted = "jpeg, png, webp, gif or bmp image";
        for empty in [InputError::EmptyImageFile, InputError::EmptyImageValue] {
            let words = format!("the file is empty; send the bytes of a {accepted}");
            assert_eq!(empty.to_string(), words);
        }
        assert_eq!(
            InputError::UnsupportedImageFormat.to_string(),
            format!("the image format is not supported; send a {accepted}")
        );
    }
}
