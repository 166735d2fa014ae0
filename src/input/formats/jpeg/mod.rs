//! Decodes JPEG files to the pixels that Pillow produces, bit for bit.
//!
//! Pillow decodes with libjpeg-turbo, which uses integer arithmetic only. This folder therefore repeats its steps
//! exactly: the IDCT, upsampling, colour conversion, and recovery from damaged data. `decode::read_header` (for limits)
//! and `decode::decode` (for pixels) share one parser. The code follows libjpeg-turbo 3.2, which Pillow 13 bundles;
//! `tests/fixtures/jpeg` holds Pillow's output for several hundred variants.
//!
//! The decoder reads sequential and progressive files with Huffman or arithmetic coding, and lossless files with
//! Huffman coding. Each file must have 8 bits per sample and one, three or four components. Pillow does not read files
//! with other coding processes either. The crate libjpeg-turbo-rs 0.9 was evaluated and rejected: its output differs
//! from Pillow's in one variant out of eight, it panics on some damaged files, and it does not promise memory safety.
//!
//! Modules: `source` reads bytes and markers; `header` parses segments; `frame` computes the geometry; `work` estimates
//! the cost; `decode` runs the steps of a decode. `scan` traverses blocks in order and calls an entropy decoder
//! (`sequential`, `progressive` or `arithmetic`); `coefficients` stores the result; `smoothing` estimates missing
//! coefficients; `idct` transforms blocks to samples; `output` upsamples and converts colours. For lossless files,
//! `lossless` replaces the steps from `scan` to `idct`. `metadata` finds EXIF and XMP data.

mod arithmetic;
mod bits;
mod coefficients;
mod decode;
mod error;
mod frame;
#[cfg(test)]
mod goldens;
mod header;
mod huffman;
mod idct;
mod lossless;
mod metadata;
mod output;
mod probabilities;
mod progressive;
mod scan;
mod sequential;
mod smoothing;
mod source;
mod work;

use self::decode::{JpegInfo, WorkLimit};
use self::error::JpegError;
use crate::input::error::undecodable;
use crate::input::format::{ImageHeader, PictureFormat};
use crate::input::limits::{check_decoded, check_size};
use crate::input::memory::OutOfMemory;
use crate::input::orientation::OrientationMetadata;
use crate::input::raster::Raster;
use crate::input::stop::Stop;
use crate::input::{InputError, InputSettings};
use crate::task::ImageFormat;

pub(super) struct Jpeg;

/// Maximum total number of passes over a full-size component that the scans of a file with `max_pixels` pixels may
/// make. For a smaller picture, proportionally more passes are allowed. A scan that refines 63 coefficients counts as
/// four passes, an arithmetic-coded scan as two. For four full-size components, libjpeg writes 18 scans, which count as
/// 48 passes. Scan scripts tuned for file size stay below the limit as well. libjpeg has no such limit when it reads a
/// file. The limit is needed because a scan that takes long to decode adds only a few bytes to a file. A picture of 50
/// megapixels with 47 refinement scans took 3.9 s on one core, a plain one 0.4 s.
const MAX_FULL_COMPONENT_PASSES: u64 = 56;

impl PictureFormat for Jpeg {
    fn matches(&self, file: &[u8]) -> bool {
        file.starts_with(b"\xff\xd8\xff")
    }

    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
        let info = decode::read_header(file).map_err(refused)?;
        let JpegInfo { width, height, work, .. } = info;
        let bytes = check_size(width, height, settings)? * 3;
        check_decoded(bytes, settings)?;
        // Applying the orientation needs a second picture. All other buffers are freed before that, so the peak is the
        // larger of the two totals.
        let working_bytes = info.working_bytes.max(bytes * 2).max(metadata::copied_bytes(file));
        Ok(ImageHeader { format: ImageFormat::Jpeg, width, height, working_bytes, work })
    }

    fn is_quick_to_inspect(&self) -> bool {
        true
    }

    fn decode(
        &self,
        file: &[u8],
        _header: &ImageHeader,
        settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        let max_blocks = settings.max_pixels.saturating_mul(MAX_FULL_COMPONENT_PASSES) / 64;
        decode::decode(file, WorkLimit { max_blocks }, stop).map_err(refused)
    }

    fn metadata<'f>(&self, file: &'f [u8]) -> Result<OrientationMetadata<'f>, OutOfMemory> {
        metadata::find(file)
    }
}

fn refused(error: JpegError) -> InputError {
    match error {
        JpegError::OutOfMemory(bytes) => InputError::OutOfMemory { bytes },
        JpegError::Stopped => InputError::Stopped,
        JpegError::Truncated
        | JpegError::Damaged
        | JpegError::Unsupported(_)
        | JpegError::TooMuchWork => undecodable(ImageFormat::Jpeg, &error.to_string()),
    }
}
