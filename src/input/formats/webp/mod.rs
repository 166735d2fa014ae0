//! Decodes `WebP` files, lossy or lossless: the picture, or the first frame of an animation, placed on its canvas.
//!
//! `container` reads the container with the rules of Pillow and rewrites the first frame as a file of its own, which
//! the decoder of the `image` crate reads. `parts` finds what that decoder reads, and `codes` computes the memory of
//! its Huffman tables. If a file is truncated, the decoder fills the rest of the picture with grey, while Pillow raises
//! an error; `container` rejects such a file.

mod codes;
mod container;
mod parts;

use std::borrow::Cow;

use crate::input::error::{DAMAGED_DATA, TRUNCATED_FILE, undecodable};
use crate::input::format::{ImageHeader, PictureFormat};
use crate::input::image_crate::CrateDecoder;
use crate::input::limits::check_decoded;
use crate::input::memory::OutOfMemory;
use crate::input::orientation::OrientationMetadata;
use crate::input::raster::Raster;
use crate::input::standalone::{FramePlacement, StandaloneFrame};
use crate::input::stop::Stop;
use crate::input::{InputError, InputSettings};
use crate::task::ImageFormat;

pub(super) struct WebP;

const DECODER: CrateDecoder =
    CrateDecoder { format: ImageFormat::WebP, name: image::ImageFormat::WebP, bytes_inside };

/// Cost of decoding one pixel of a lossy bitstream, and of a lossless one; the unit is one pixel of a plain JPEG, as in
/// `ImageHeader::work`. Measured on pictures of 50 megapixels.
const LOSSY_WORK_PER_PIXEL: u64 = 2;
const LOSSLESS_WORK_PER_PIXEL: u64 = 4;

impl PictureFormat for WebP {
    fn matches(&self, file: &[u8]) -> bool {
        matches!(file, [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..])
    }

    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
        let still = open(file)?;
        let size = DECODER.read_size(&still, settings)?;
        let (file, sides) = (&*still.file, size.sides);
        if parts::frame_exceeds(file, sides) {
            return Err(undecodable(DECODER.format, "a frame is larger than its canvas"));
        }
        let inside = bytes_inside(file, sides) + check_codes(file, sides, settings)?;
        Ok(still.header(DECODER.format, &size, inside, work_per_pixel(file, sides) * size.pixels))
    }

    fn decode(
        &self,
        file: &[u8],
        header: &ImageHeader,
        settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        DECODER.decode(open(file)?, header, settings, stop)
    }

    /// Returns the metadata chunks that the flags of the VP8X chunk declare.
    fn metadata<'f>(&self, file: &'f [u8]) -> Result<OrientationMetadata<'f>, OutOfMemory> {
        let Some(container) = container::read(file) else {
            return Ok(OrientationMetadata::default());
        };
        Ok(OrientationMetadata {
            exif: container.exif.filter(|exif| !exif.is_empty()).map(Cow::Borrowed),
            xmp: container.xmp.map(Cow::Borrowed),
        })
    }
}

/// Returns a file with only the first frame.
///
/// # Errors
/// `UndecodableImage` if the container is truncated or inconsistent, `OutOfMemory`.
fn open(file: &[u8]) -> Result<StandaloneFrame<'_>, InputError> {
    let container = container::read(file).ok_or_else(|| {
        let is_complete = has_declared_length(file) && !parts::metadata_is_cut(file);
        undecodable(DECODER.format, if is_complete { DAMAGED_DATA } else { TRUNCATED_FILE })
    })?;
    let placement = FramePlacement {
        sides: container.sides(),
        place: container.place,
        canvas: container.canvas,
        background: [0; 4],
    };
    Ok(StandaloneFrame::rewritten(container.still()?, placement))
}

/// True if the file is at least as long as the RIFF header says. A missing final padding byte is tolerated, and so are
/// bytes after the end, as in Pillow.
fn has_declared_length(file: &[u8]) -> bool {
    let Some(size) = file.get(4..8).and_then(|bytes| bytes.first_chunk()) else { return false };
    let size = u64::from(u32::from_le_bytes(*size));
    file.len() as u64 >= (size & !1) + 8
}

/// Returns how many bytes the decoder allocates for planes, transparency and compressed data.
fn bytes_inside(file: &[u8], frame: (u32, u32)) -> u64 {
    let pixels = u64::from(frame.0) * u64::from(frame.1);
    let parts = parts::parts(file, frame);
    let lossy = parts.lossy.map_or(0, |data| lossy_bytes(data, frame));
    let lossless = parts.lossless.map_or(0, |stream| {
        // Four channels, and, if the bitstream is an alpha channel, also a copy of one channel. The predictor, colour
        // and entropy images have one pixel for each 4 x 4 block.
        let block = |side: u32| u64::from(side.div_ceil(4));
        pixels * if stream.is_alpha { 5 } else { 4 } + block(frame.0) * block(frame.1) * 12
    });
    let plain_alpha = if parts.plain_alpha { pixels } else { 0 };
    lossy + lossless + plain_alpha
}

/// Returns how many bytes the decoder allocates for a lossy bitstream.
fn lossy_bytes(data: &[u8], frame: (u32, u32)) -> u64 {
    // The state of a macroblock takes 30 bytes. The decoder keeps those of all macroblocks in a list.
    const MACROBLOCK_STATE_BYTES: u64 = 32;
    // The list of states and the buffer for the compressed data grow by doubling. Such a buffer takes up to three times
    // the length of its content while the content moves, and so do a finished one and a copy of its content.
    const GROWTH: u64 = 3;
    // Planes of whole macroblocks, 16 pixels a side: one for luma, and two for chroma with half the width and height.
    let side = |side: u32| u64::from(side).div_ceil(16);
    let macroblocks = side(frame.0) * side(frame.1);
    macroblocks * (256 * 3 / 2 + MACROBLOCK_STATE_BYTES * GROWTH) + data.len() as u64 * GROWTH
}

/// Returns the cost of decoding one pixel of the file; the unit is one pixel of a plain JPEG, as in
/// `ImageHeader::work`.
fn work_per_pixel(file: &[u8], frame: (u32, u32)) -> u64 {
    let parts = parts::parts(file, frame);
    let (lossy, lossless) = (parts.lossy.is_some(), parts.lossless.is_some());
    u64::from(lossy) * LOSSY_WORK_PER_PIXEL + u64::from(lossless) * LOSSLESS_WORK_PER_PIXEL
}

/// Returns the size in bytes of a lossless picture's code tables. Checks this size against `max_decoded_bytes`, because
/// the decoder allocates these tables without a limit.
fn check_codes(
    file: &[u8],
    frame: (u32, u32),
    settings: &InputSettings,
) -> Result<u64, InputError> {
    match codes::code_bytes(file, frame, settings.max_decoded_bytes) {
        Ok(bytes) => check_decoded(bytes, settings).map(|()| bytes),
        Err(codes::Malformed) => Err(undecodable(DECODER.format, DAMAGED_DATA)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_the_end_do_no_harm() {
        assert!(has_declared_length(b"RIFF\x06\0\0\0WEBPxx and more"));
    }

    #[test]
    fn a_webp_must_be_as_long_as_it_says() {
        assert!(has_declared_length(b"RIFF\x06\0\0\0WEBPxx"));
        assert!(has_declared_length(b"RIFF\x07\0\0\0WEBPxx"));
        assert!(!has_declared_length(b"RIFF\x08\0\0\0WEBPxx"));
        assert!(!has_declared_length(b"RIFF\x06\0"));
    }
}
