//! Decodes PNG files; of an APNG, only the default image. The decoder of the `image` crate reads the pixels, and
//! `metadata` the orientation. The decoder reads up to the end of the pixels, so `metadata` also finds out whether the
//! chunks after them are there.

mod metadata;

use crate::input::error::{DAMAGED_DATA, TRUNCATED_FILE, undecodable};
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

const DECODER: CrateDecoder = CrateDecoder {
    format: ImageFormat::Png,
    name: image::ImageFormat::Png,
    // The decoder reads the metadata when it is opened. Afterwards it allocates only a few rows.
    bytes_inside: |_, _| 0,
};

/// Offset of the colour type in the file, in the chunk IHDR, and its value for pictures with a palette.
const COLOUR_TYPE: usize = 25;
const INDEXED: u8 = 3;

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
        if !metadata::is_complete(file) {
            return Err(undecodable(DECODER.format, TRUNCATED_FILE));
        }
        if file.get(COLOUR_TYPE) == Some(&INDEXED) && !metadata::has_whole_colours(file) {
            return Err(undecodable(DECODER.format, DAMAGED_DATA));
        }
        let inside = metadata_bytes(file, METADATA_BYTES);
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

/// Returns the number of bytes that the decoder takes for the metadata before the pixels, which it keeps. `most` is the
/// decoder's own limit on these bytes, not counting spare capacity. The few rows that it also keeps are not counted.
fn metadata_bytes(file: &[u8], most: u64) -> u64 {
    // A buffer that grows by doubling takes up to three times the length of its content while the content moves.
    const GROWTH: u64 = 3;
    let (mut at, mut kept, mut longest) = (8, 0_u64, 0);
    while let Some(&[l0, l1, l2, l3, ref name @ ..]) =
        file.get(at..).and_then(|file| file.first_chunk::<8>())
    {
        let length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        let bytes = match name {
            b"IDAT" => break,
            // An ICC profile is inflated; DEFLATE expands one byte to at most 1,032.
            b"iCCP" => (length * 1032).min(most) * GROWTH,
            // Each byte of Latin-1 text may become two bytes of UTF-8.
            b"tEXt" => length * 2,
            b"zTXt" | b"iTXt" | b"eXIf" => length,
            _ => 0,
        };
        if bytes > 0 {
            kept += bytes;
            longest = longest.max(length);
        }
        at = at.saturating_add(12).saturating_add(length as usize);
    }
    // The chunks are read through one buffer.
    (kept + longest * GROWTH).min(most * GROWTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{decode, inspect};
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder};

    #[test]
    fn a_file_that_ends_in_a_chunk_after_its_pixels_is_refused() {
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(&[9; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
        // A text chunk in front of the last chunk. Nothing compares its checksum.
        let text = b"\0\0\0\x07tEXtkey\0xyzCRC.";
        let end = file.len() - 12;
        file.splice(end..end, text.iter().copied());
        let settings = InputSettings::default();
        let read = |file: &[u8]| {
            let header = inspect(file, &settings)?;
            decode(file, &header, &settings, &|| false)
        };
        assert!(read(&file).is_ok());
        // The checksum of the last chunk may be missing.
        for length in end..file.len() - 4 {
            let refused = read(&file[..length]).unwrap_err();
            assert_eq!(refused, undecodable(ImageFormat::Png, TRUNCATED_FILE), "{length}");
        }
    }
}
