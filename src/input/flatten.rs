//! Converts decoded pixels of any layout to opaque 8-bit RGB, with Pillow's arithmetic.

use super::InputError;
use super::memory;
use super::raster::{Layout, Raster};
use super::stop::{self, Stop};

/// Number of pixels or samples between two polls of `stop`.
const PIECE: usize = 1 << 20;

/// Returns the pixels of `raster` as opaque RGB, row-major. Transparency is composited over `background` as
/// `Image.alpha_composite` does (`transformers/image_transforms.py`, `convert_to_rgb`). Of each 16-bit sample, only the
/// high byte is used, as Pillow does for colour pictures. Pillow clips the samples of 16-bit grey pictures at 255
/// instead, which turns these pictures white; this behaviour is not reproduced.
///
/// RGB and RGBA pixels are flattened in place; grey pixels, with or without alpha, need a second buffer.
///
/// # Errors
/// `OutOfMemory`, `Stopped`.
pub(super) fn flatten(
    raster: Raster,
    background: [u8; 3],
    stop: Stop<'_>,
) -> Result<Vec<u8>, InputError> {
    let Raster { layout: Layout { channels, wide }, mut data, .. } = raster;
    if wide {
        keep_high_bytes(&mut data, stop)?;
    }
    let [red, green, blue] = background;
    let over = |[r, g, b]: [u8; 3], alpha: u8| {
        [composite(r, red, alpha), composite(g, green, alpha), composite(b, blue, alpha)]
    };
    match channels {
        1 => widened::<1>(data, stop, |[v]| [v; 3]),
        2 => widened::<2>(data, stop, |[v, a]| over([v; 3], a)),
        4 => flatten_rgba(data, stop, over),
        _ => Ok(data),
    }
}

/// Keeps the high byte of each 16-bit sample, moving the bytes towards the front.
fn keep_high_bytes(data: &mut Vec<u8>, stop: Stop<'_>) -> Result<(), InputError> {
    const HIGH: usize = if cfg!(target_endian = "big") { 0 } else { 1 };
    let samples = data.len() / 2;
    for first in (0..samples).step_by(PIECE) {
        stop::check(stop)?;
        for sample in first..(first + PIECE).min(samples) {
            data[sample] = data[sample * 2 + HIGH];
        }
    }
    data.truncate(samples);
    Ok(())
}

fn widened<const CHANNELS: usize>(
    data: Vec<u8>,
    stop: Stop<'_>,
    colour: impl Fn([u8; CHANNELS]) -> [u8; 3],
) -> Result<Vec<u8>, InputError> {
    let pixels = data.as_chunks::<CHANNELS>().0;
    let mut out = memory::with_capacity(pixels.len() * 3)?;
    for piece in pixels.chunks(PIECE) {
        stop::check(stop)?;
        out.extend(piece.iter().flat_map(|&pixel| colour(pixel)));
    }
    memory::release(data);
    Ok(out)
}

/// Composites each RGBA pixel with `over`. Works in place by moving each pixel towards the front, so no second picture
/// is allocated.
fn flatten_rgba(
    mut data: Vec<u8>,
    stop: Stop<'_>,
    over: impl Fn([u8; 3], u8) -> [u8; 3],
) -> Result<Vec<u8>, InputError> {
    let pixels = data.len() / 4;
    for first in (0..pixels).step_by(PIECE) {
        stop::check(stop)?;
        for pixel in first..(first + PIECE).min(pixels) {
            let [r, g, b, a] = [0, 1, 2, 3].map(|channel| data[pixel * 4 + channel]);
            data[pixel * 3..pixel * 3 + 3].copy_from_slice(&over([r, g, b], a));
        }
    }
    data.truncate(pixels * 3);
    Ok(data)
}

/// Composites one channel over an opaque background. As in Pillow's `AlphaComposite.c`, the calculation has 7 extra
/// bits of precision.
fn composite(source: u8, background: u8, alpha: u8) -> u8 {
    const PRECISION_BITS: u32 = 7;
    let source_weight = u32::from(alpha) << PRECISION_BITS;
    let background_weight = (255 << PRECISION_BITS) - source_weight;
    let sum = u32::from(source) * source_weight
        + u32::from(background) * background_weight
        + (0x80 << PRECISION_BITS);
    ((((sum >> 8) + sum) >> 8) >> PRECISION_BITS) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_and_clear_pixels_are_exact() {
        for value in 0..=255 {
            assert_eq!(composite(value, 255, 255), value);
            assert_eq!(composite(value, 200, 0), 200);
        }
    }

    #[test]
    fn a_half_clear_pixel_is_composited_as_pillow_does() {
        // Each case is (v, a, the result of `Image.alpha_composite(white, (v, v, v, a))` in Pillow 13).
        let cases = [
            (0, 1, 254),
            (0, 128, 127),
            (10, 127, 133),
            (100, 200, 133),
            (254, 3, 255),
            (77, 254, 78),
        ];
        for (value, alpha, expected) in cases {
            assert_eq!(composite(value, 255, alpha), expected, "{value} at {alpha}");
        }
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        let flat = |channels, samples: &[u16]| {
            let data = samples.iter().flat_map(|sample| sample.to_ne_bytes()).collect();
            let layout = Layout { channels, wide: true };
            let width = (samples.len() / channels) as u32;
            flatten(Raster { width, height: 1, layout, data }, [255; 3], &|| false).unwrap()
        };
        assert_eq!(flat(1, &[0x12ff, 0xff00]), [0x12, 0x12, 0x12, 0xff, 0xff, 0xff]);
        assert_eq!(flat(2, &[0x12ff, 0xff00, 0x3456, 0]), [0x12, 0x12, 0x12, 255, 255, 255]);
        assert_eq!(flat(3, &[0x12ff, 0xff00, 0x00ff]), [0x12, 0xff, 0]);
        assert_eq!(flat(4, &[0x12ff, 0xff00, 0x00ff, 0xffff]), [0x12, 0xff, 0]);
    }
}
