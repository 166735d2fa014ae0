//! Errors of BMP files. The folder's `mod.rs` maps each variant to the message that a client reads.

use crate::input::memory::OutOfMemory;
use crate::input::stop::Stopped;

/// Why a BMP file cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BmpError {
    /// The file ends before the end of its pixel data.
    Incomplete,
    /// The file uses a depth, compression, palette or bit field that Pillow does not support either.
    Unsupported,
    /// The compressed data does not fill the picture.
    Damaged,
    /// A buffer of this many bytes cannot be allocated.
    OutOfMemory(u64),
    /// The decode was cancelled by its [`Stop`](crate::input::Stop) callback.
    Stopped,
}

impl From<OutOfMemory> for BmpError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::OutOfMemory(bytes)
    }
}

impl From<Stopped> for BmpError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}
