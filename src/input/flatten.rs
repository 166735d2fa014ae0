//! Any colour type that the decoders give to opaque 8-bit RGB, with Pillow's arithmetic.

use image::DynamicImage;

/// A colour type that no accepted format decodes to.
#[derive(Debug)]
pub(super) struct UnknownColour;

/// Opaque RGB, row-major. Transparency is composited over `background` as `Image.alpha_composite` does
/// (`transformers/image_transforms.py`, `convert_to_rgb`); of 16-bit samples the high byte is kept, as Pillow
/// does for colour. For 16-bit grey Pillow clips at 255 instead, which turns such pictures white: not copied.
pub(super) fn flatten(image: DynamicImage, background: [u8; 3]) -> Result<Vec<u8>, UnknownColour> {
    let [red, green, blue] = background;
    let over = |[r, g, b]: [u8; 3], alpha: u8| {
        [composite(r, red, alpha), composite(g, green, alpha), composite(b, blue, alpha)]
    };
    Ok(match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.into_raw().iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            let (pixels, _) = image.as_raw().as_chunks::<2>();
            pixels.iter().flat_map(|&[v, a]| over([v; 3], a)).collect()
        }
        DynamicImage::ImageRgba8(image) => flatten_rgba(image.into_raw(), over),
        DynamicImage::ImageLuma16(image) => {
            image.as_raw().iter().flat_map(|&v| [high_byte(v); 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => {
            let (pixels, _) = image.as_raw().as_chunks::<2>();
            pixels.iter().flat_map(|&[v, a]| over([high_byte(v); 3], high_byte(a))).collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|&v| high_byte(v)).collect(),
        DynamicImage::ImageRgba16(image) => {
            let (pixels, _) = image.as_raw().as_chunks::<4>();
            pixels
                .iter()
                .flat_map(|&[r, g, b, a]| over([r, g, b].map(high_byte), high_byte(a)))
                .collect()
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) | _ => {
            return Err(UnknownColour);
        }
    })
}

/// In place: each pixel moves towards the front, so no second picture is allocated.
fn flatten_rgba(mut data: Vec<u8>, over: impl Fn([u8; 3], u8) -> [u8; 3]) -> Vec<u8> {
    let pixels = data.len() / 4;
    for pixel in 0..pixels {
        let [r, g, b, a] = [0, 1, 2, 3].map(|channel| data[pixel * 4 + channel]);
        data[pixel * 3..pixel * 3 + 3].copy_from_slice(&over([r, g, b], a));
    }
    data.truncate(pixels * 3);
    data
}

fn high_byte(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// One channel over an opaque background: Pillow's `AlphaComposite.c`, which computes with 7 extra bits.
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
        // Image.alpha_composite(white, (v, v, v, a)) of Pillow 13.
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
        let grey = image::ImageBuffer::from_raw(2, 1, vec![0x12ff_u16, 0xff00]).unwrap();
        let data = flatten(DynamicImage::ImageLuma16(grey), [255; 3]).unwrap();
        assert_eq!(data, [0x12, 0x12, 0x12, 0xff, 0xff, 0xff]);
    }
}
