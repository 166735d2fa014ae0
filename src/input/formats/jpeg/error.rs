//! Errors of JPEG files. The folder's `mod.rs` maps each variant to the message that a client reads.

use crate::input::memory::OutOfMemory;
use crate::input::stop::Stopped;

/// Why a JPEG file cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JpegError {
    /// The file ends before the end of its last scan.
    #[error("the file ends before the image is complete")]
    Truncated,
    /// A segment or the entropy-coded data is invalid. Pillow rejects such a file as well.
    #[error("its data is damaged")]
    Damaged,
    /// The file uses a feature of the standard that libjpeg-turbo, and therefore Pillow, does not decode to 8-bit
    /// samples.
    #[error("it uses {0}, which is not supported")]
    Unsupported(&'static str),
    /// Decoding would cost more than [`super::decode::WorkLimit`] allows.
    #[error("it takes too much work to decode; save it again with fewer scans")]
    TooMuchWork,
    /// A buffer of this many bytes cannot be allocated.
    #[error("not enough memory for it at the moment")]
    OutOfMemory(u64),
    /// The decode was cancelled by its [`Stop`](crate::input::Stop) callback.
    #[error("decoding was cancelled")]
    Stopped,
}

impl From<OutOfMemory> for JpegError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::OutOfMemory(bytes)
    }
}

impl From<Stopped> for JpegError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}
