//! Applies the EXIF orientation to an RGB picture.

use image::metadata::Orientation;

use super::InputError;
use super::memory;
use super::stop::{self, Stop};
use crate::task::Pixels;

/// Number of columns that are transposed together: one and a half cache lines of every source row. These columns become
/// 32 destination rows, which are written at the same time.
const BAND: usize = 32;

/// Returns the upright picture. Mirroring and half turns happen in place; the other orientations allocate a second
/// picture.
///
/// # Errors
/// `OutOfMemory`, `Stopped`.
pub(super) fn apply_orientation(
    (width, height): (u32, u32),
    mut data: Vec<u8>,
    orientation: Orientation,
    stop: Stop<'_>,
) -> Result<Pixels, InputError> {
    let row_bytes = width as usize * 3;
    match orientation {
        Orientation::NoTransforms => {}
        Orientation::Rotate180 => data.as_chunks_mut::<3>().0.reverse(),
        Orientation::FlipHorizontal => {
            for row in data.chunks_exact_mut(row_bytes) {
                row.as_chunks_mut::<3>().0.reverse();
            }
        }
        Orientation::FlipVertical => {
            let (upper, lower) = data.split_at_mut(height as usize / 2 * row_bytes);
            let lower = lower.chunks_exact_mut(row_bytes).rev();
            for (upper, lower) in upper.chunks_exact_mut(row_bytes).zip(lower) {
                upper.swap_with_slice(lower);
            }
        }
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => {
            let turned = transposed(&data, (width as usize, height as usize), orientation, stop)?;
            memory::release(data);
            return Ok(Pixels::new(height, width, turned));
        }
    }
    Ok(Pixels::new(width, height, data))
}

/// Returns the picture with its columns turned into rows, in the order that `orientation` requires.
fn transposed(
    data: &[u8],
    (width, height): (usize, usize),
    orientation: Orientation,
    stop: Stop<'_>,
) -> Result<Vec<u8>, InputError> {
    // After a quarter turn clockwise, each output row starts with the bottom pixel of a column. After a quarter turn
    // counter-clockwise, the first output row is the last column.
    let from_below = matches!(orientation, Orientation::Rotate90 | Orientation::Rotate270FlipH);
    let from_right = matches!(orientation, Orientation::Rotate270 | Orientation::Rotate270FlipH);
    let mut out: Vec<u8> = memory::filled_until::<_, InputError>(0, data.len(), stop)?;
    let pixels = data.as_chunks::<3>().0;
    let out_pixels = out.as_chunks_mut::<3>().0;
    for first in (0..width).step_by(BAND) {
        stop::check(stop)?;
        let end = (first + BAND).min(width);
        for (y, row) in pixels.chunks_exact(width).enumerate() {
            let column = if from_below { height - 1 - y } else { y };
            for (x, &pixel) in (first..end).zip(&row[first..end]) {
                let row = if from_right { width - 1 - x } else { x };
                out_pixels[row * height + column] = pixel;
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, RgbImage};

    #[test]
    fn every_turn_is_that_of_the_image_crate() {
        for (width, height) in [(1, 1), (1, 5), (5, 1), (3, 4), (33, 70), (64, 31)] {
            let data: Vec<u8> =
                (0..width * height * 3).map(|index| (index * 31 % 251) as u8).collect();
            for orientation in (1..=8).filter_map(Orientation::from_exif) {
                let image = RgbImage::from_raw(width, height, data.clone()).unwrap();
                let mut expected = DynamicImage::ImageRgb8(image);
                expected.apply_orientation(orientation);
                let picture =
                    apply_orientation((width, height), data.clone(), orientation, &|| false)
                        .unwrap();
                assert_eq!(
                    (picture.width(), picture.height()),
                    (expected.width(), expected.height())
                );
                assert_eq!(
                    picture.as_bytes(),
                    expected.as_bytes(),
                    "{width}x{height} {orientation:?}"
                );
            }
        }
    }
}
