//! Why a JPEG file is refused. `input/decode` turns each variant into the message that a client reads.

use crate::input::memory::OutOfMemory;
use crate::input::stop::Stopped;

/// What is wrong with a JPEG file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::input) enum JpegError {
    /// The file ends before its last scan does.
    #[error("the file ends before its picture is complete")]
    Truncated,
    /// A segment or its entropy-coded data break the rules; libjpeg stops at the same places.
    #[error("its data is damaged")]
    Damaged,
    /// A process of the standard that libjpeg-turbo, and so Pillow, does not read as 8-bit samples.
    #[error("it uses {0}, which is not read")]
    Unsupported(&'static str),
    /// Decoding would cost more than the limits allow: see [`super::Limits`].
    #[error("it takes too much work to decode; save it again with fewer scans")]
    TooMuchWork,
    /// There is no memory for so many bytes.
    #[error("there is no memory for it at present")]
    OutOfMemory(u64),
    /// The work was ended from outside.
    #[error("it was not wanted any more")]
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
