//! Decodes BMP as Pillow does (`BmpImagePlugin`): DIB headers of 12 to 124 bytes, 1 to 32 bits per pixel, palettes of
//! any length, RLE4 and RLE8, and the bit fields that Pillow supports. Reserved fields, the number of planes and the
//! file size in the header are ignored.
//!
//! A palette that is a plain grey ramp is dropped, as in Pillow. If such a palette has two colours, the picture is read
//! as 1 bit per pixel, whatever its declared depth.

mod error;
mod header;
mod palette;
mod pixels;
mod runs;

use self::error::BmpError;
use self::header::BmpHeader;
use crate::input::error::{
    DAMAGED_DATA, NO_PIXELS, TRUNCATED_FILE, UNSUPPORTED_VARIANT, undecodable,
};
use crate::input::format::{ImageHeader, PictureFormat};
use crate::input::limits::{check_decoded, check_size};
use crate::input::raster::Raster;
use crate::input::stop::Stop;
use crate::input::{InputError, InputSettings};
use crate::task::ImageFormat;

pub(super) struct Bmp;

impl PictureFormat for Bmp {
    /// A text file may also begin with "BM", so the first field of the DIB header is checked too. This field is the
    /// size of the DIB header in four bytes: one of the values below and three zero bytes, which no text contains. The
    /// reserved fields before the DIB header may have any value.
    fn matches(&self, file: &[u8]) -> bool {
        file.starts_with(b"BM")
            && matches!(file.get(14..18), Some([12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
    }

    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
        let header = BmpHeader::read(file).map_err(refused)?;
        let (width, height, format) = (header.width, header.height, ImageFormat::Bmp);
        let pixels = check_size(width, height, settings)?;
        if pixels == 0 {
            return Err(undecodable(format, NO_PIXELS));
        }
        let bytes = pixels * header.bytes_per_pixel();
        check_decoded(bytes, settings)?;
        header.check_length(file).map_err(refused)?;
        // A BMP has no orientation, and its pixels are flattened in place, so no second picture is needed.
        let working_bytes = bytes + header.unpacked_bytes();
        Ok(ImageHeader { format, width, height, working_bytes, work: pixels })
    }

    fn is_quick_to_inspect(&self) -> bool {
        true
    }

    fn decode(
        &self,
        file: &[u8],
        _header: &ImageHeader,
        _settings: &InputSettings,
        stop: Stop<'_>,
    ) -> Result<Raster, InputError> {
        BmpHeader::read(file).and_then(|header| header.decode(file, stop)).map_err(refused)
    }
}

fn refused(error: BmpError) -> InputError {
    let problem = match error {
        BmpError::OutOfMemory(bytes) => return InputError::OutOfMemory { bytes },
        BmpError::Stopped => return InputError::Stopped,
        BmpError::Incomplete => TRUNCATED_FILE,
        BmpError::Unsupported => UNSUPPORTED_VARIANT,
        BmpError::Damaged => DAMAGED_DATA,
    };
    undecodable(ImageFormat::Bmp, problem)
}
