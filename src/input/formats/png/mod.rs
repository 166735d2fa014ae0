//! Decodes PNG files; of an APNG, only the default image. The decoder of the `image` crate reads the pixels, and
//! `metadata` the orientation. The decoder reads every byte, so it detects a truncated file.

mod metadata;

use crate::input::format::{ImageHeader, PictureFormat};
use crate::input::image_crate::{CrateDecoder, METADATA_BYTES};
use crate::input::limits::check_size;
use crate::input::memory::OutOfMemory;
use crate::input::orientation::OrientationMetadata;
use crate::input::raster::Raster;
use crate::input::standalone::StandaloneFrame;
use crate::input::stop::Stop;
use crate::input::{InputError, InputSettings};
use crate::task::ImageFormat;

pub(super) struct Png;

const DECODER: CrateDecoder =
    CrateDecoder { format: ImageFormat::Png, name: image::ImageFormat::Png, bytes_inside };

impl PictureFormat for Png {
    fn matches(&self, file: &[u8]) -> bool {
        file.starts_with(b"\x89PNG\r\n\x1a\n")
    }

    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
        if let Some((width, height)) = declared_size(file) {
            check_size(width, height, settings)?;
        }
        let still = StandaloneFrame::whole(file);
        let size = DECODER.read_size(&still, settings)?;
        let inside = bytes_inside(file, size.sides);
        // The cost is proportional to the size of the rows in bytes. The factor was measured on pictures of
        // 50 megapixels.
        let mut header = still.header(DECODER.format, &size, inside, size.bytes / 2);
        header.working_bytes = header.working_bytes.max(metadata::copied_bytes(file));
        Ok(header)
    }

    fn decode(
        &self,
        file: &[u8],
        header: &ImageHeader,
        settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        DECODER.decode(StandaloneFrame::whole(file), header, settings, stop)
    }

    fn metadata<'f>(&self, file: &'f [u8]) -> Result<OrientationMetadata<'f>, OutOfMemory> {
        metadata::find(file)
    }
}

/// Returns the width and height from the IHDR chunk. They are read here because the decoder rejects rows beyond its
/// memory limit before it reports the size.
fn declared_size(file: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = file.get(16..)?.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

/// Returns the size in bytes of the metadata that the decoder keeps. The few rows that it also keeps are not counted.
fn bytes_inside(file: &[u8], _frame: (u32, u32)) -> u64 {
    kept_metadata_bytes(file, METADATA_BYTES)
}

/// Returns the number of bytes of metadata that the decoder keeps from the chunks before the pixels. The result is at
/// most `most`. A compressed ICC profile (`iCCP`) counts as the smaller of `most` and its maximum inflated size;
/// DEFLATE expands one byte to at most 1,032.
fn kept_metadata_bytes(file: &[u8], most: u64) -> u64 {
    let (mut at, mut bytes) = (8, 0_u64);
    while let Some(&[l0, l1, l2, l3, ref name @ ..]) =
        file.get(at..).and_then(|file| file.first_chunk::<8>())
    {
        let length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        match name {
            b"IDAT" => break,
            b"iCCP" => bytes += (length * 1032).min(most),
            b"tEXt" | b"zTXt" | b"iTXt" | b"eXIf" => bytes += length,
            _ => {}
        }
        at = at.saturating_add(12).saturating_add(length as usize);
    }
    bytes.min(most)
}
