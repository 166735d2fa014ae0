//! The interface between `input` and its picture formats: the trait [`PictureFormat`], and the [`ImageHeader`] that its
//! `inspect` returns. Each module of `formats` implements the trait for one format; `formats/mod.rs` selects the
//! implementation and `decode` calls it.

use super::memory::OutOfMemory;
use super::orientation::OrientationMetadata;
use super::raster::Raster;
use super::stop::Stop;
use super::{InputError, InputSettings};
use crate::task::ImageFormat;

/// The properties of a file that are known before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format indicated by the file's first bytes.
    pub format: ImageFormat,
    /// Width in pixels as stored, before the orientation is applied.
    pub width: u32,
    /// Height in pixels as stored, before the orientation is applied.
    pub height: u32,
    /// Peak memory in bytes that decoding, flattening and applying the orientation need, estimated from the header.
    pub working_bytes: u64,
    /// Estimated cost of decoding: the number of pixels of a plain JPEG (one Huffman-coded scan) that take about as
    /// long to decode. For a JPEG, the estimate counts the scans and the bytes of entropy-coded data; for other
    /// formats, it is the number of pixels times a measured factor. The estimate is computed from the header and, for a
    /// multi-scan JPEG, from all scan headers.
    pub work: u64,
}

/// A picture file format: recognises, checks and decodes its files.
pub(super) trait PictureFormat {
    /// True if the first bytes of `file` are those of this format. No two formats may claim the same file.
    fn matches(&self, file: &[u8]) -> bool;

    /// Reads the header and checks it against every limit, without allocating pixels. Rejects a file whose structure
    /// shows that it is truncated, unless the decoder itself reads every byte and so detects the truncation.
    ///
    /// `working_bytes` of the result must cover all that follows: [`Self::decode`], flattening, applying the
    /// orientation, and [`Self::metadata`].
    ///
    /// # Errors
    /// `ImageTooLarge`, `DecodedImageTooLarge`, `OutOfMemory`, `UndecodableImage`.
    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError>;

    /// True if [`Self::inspect`] takes only microseconds for a small file, so that it can run outside the decoding
    /// threads.
    fn is_quick_to_inspect(&self) -> bool {
        false
    }

    /// Decodes a file that [`Self::inspect`] has accepted. Returns the pixels as stored, before they are flattened and
    /// the orientation is applied.
    ///
    /// # Errors
    /// `UndecodableImage`, `DecodedImageTooLarge`, `OutOfMemory`, `Stopped`.
    fn decode(
        &self,
        file: &[u8],
        header: &ImageHeader,
        settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError>;

    /// Finds the metadata that may contain the orientation. The default implementation is for formats without such
    /// metadata.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn metadata<'f>(&self, _file: &'f [u8]) -> Result<OrientationMetadata<'f>, OutOfMemory> {
        Ok(OrientationMetadata::default())
    }
}
