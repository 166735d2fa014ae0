//! Decodes GIF files: the first frame, placed on the screen of the animation.
//!
//! `frame` reads the first frame with the rules of Pillow and rewrites it as a file of its own, which the decoder of
//! the `image` crate reads. If a file is truncated, that decoder fills the rest of the picture or stops early without
//! an error, while Pillow raises an error. `frame` therefore walks all blocks up to the end of the frame's data.

mod frame;

use self::frame::first_frame;
use crate::input::error::{TRUNCATED_FILE, undecodable};
use crate::input::format::{ImageHeader, PictureFormat};
use crate::input::image_crate::CrateDecoder;
use crate::input::raster::Raster;
use crate::input::standalone::{FramePlacement, StandaloneFrame};
use crate::input::stop::Stop;
use crate::input::{InputError, InputSettings};
use crate::task::ImageFormat;

pub(super) struct Gif;

const DECODER: CrateDecoder =
    CrateDecoder { format: ImageFormat::Gif, name: image::ImageFormat::Gif, bytes_inside };

/// Cost of decoding one pixel; the unit is one pixel of a plain JPEG, as in `ImageHeader::work`. Measured on pictures
/// of 50 megapixels.
const WORK_PER_PIXEL: u64 = 3;

impl PictureFormat for Gif {
    fn matches(&self, file: &[u8]) -> bool {
        file.starts_with(b"GIF87a") || file.starts_with(b"GIF89a")
    }

    fn inspect(&self, file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
        let still = open(file)?;
        let size = DECODER.read_size(&still, settings)?;
        let inside = bytes_inside(&still.file, size.sides);
        Ok(still.header(DECODER.format, &size, inside, size.pixels * WORK_PER_PIXEL))
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
}

/// Returns a file with only the first frame.
///
/// # Errors
/// `UndecodableImage` if the file is truncated or has no frame, `OutOfMemory`.
fn open(file: &[u8]) -> Result<StandaloneFrame<'_>, InputError> {
    let frame = first_frame(file).ok_or_else(|| undecodable(ImageFormat::Gif, TRUNCATED_FILE))?;
    let placement = FramePlacement {
        sides: frame.sides,
        place: frame.place,
        canvas: frame.screen,
        background: frame.uncovered(),
    };
    Ok(StandaloneFrame::rewritten(frame.still()?, placement))
}

/// Returns the size in bytes of the colour indices, one byte per pixel, before they are mapped to colours.
fn bytes_inside(_file: &[u8], (width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}
