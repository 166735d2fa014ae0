//! The pictures that clients send, and the decoder of a simulation.
//!
//! The decoder takes simulated time in proportion to the work that the file's header announces, and checks between
//! slices of that time whether it should stop, as the real decoders do between rows. Small pictures are then really
//! decoded. Large ones would take real time, so a tiny picture stands for their pixels.

use std::sync::LazyLock;
use std::time::Duration;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use crate::input::{ImageHeader, InputError, InputSettings, Stop, decode};
use crate::platform::simulated;
use crate::task::Pixels;

/// Simulated time for a pixel of work: a picture of 3 megapixels takes 0.3 seconds.
const PER_PIXEL: Duration = Duration::from_nanos(100);
/// Simulated time between two checks whether to stop.
const SLICE: Duration = Duration::from_millis(20);
/// Pictures of up to this many pixels are really decoded.
const SMALL: u64 = 1 << 12;

/// Returns a PNG file of 4 x 4 pixels. Files with different marks have different pixels.
pub(super) fn small(mark: u64) -> Vec<u8> {
    let pixels: Vec<u8> = (0..48).map(|place| (mark >> (place % 7 * 8)) as u8 ^ place).collect();
    png(&pixels, 4, 4, ExtendedColorType::Rgb8)
}

/// Returns a PNG file of 2000 x 1500 pixels in a few kilobytes. Files with different marks have different ids.
pub(super) fn large(mark: u64) -> Vec<u8> {
    static FILE: LazyLock<Vec<u8>> =
        LazyLock::new(|| png(&vec![0; 2000 * 1500], 2000, 1500, ExtendedColorType::L8));
    // Decoders ignore what follows the end of the picture.
    [FILE.as_slice(), &mark.to_le_bytes()].concat()
}

fn png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
    let mut file = Vec::new();
    PngEncoder::new(&mut file)
        .write_image(pixels, width, height, color)
        .expect("a vector takes all bytes");
    file
}

/// Decodes a picture in simulated time.
pub(super) fn decode_slowly(
    file: &[u8],
    header: &ImageHeader,
    settings: &InputSettings,
    stop: Stop<'_>,
) -> Result<Pixels, InputError> {
    let mut left = PER_PIXEL * header.work.try_into().unwrap_or(u32::MAX);
    while !left.is_zero() {
        let slice = left.min(SLICE);
        simulated::sleep(slice);
        left -= slice;
        if stop() {
            return Err(InputError::Stopped);
        }
    }
    if u64::from(header.width) * u64::from(header.height) <= SMALL {
        return decode(file, header, settings, stop);
    }
    let mark = file.iter().rev().take(8).fold(0, |mark, byte| mark ^ byte);
    Ok(Pixels::new(2, 2, vec![mark; 12]))
}
