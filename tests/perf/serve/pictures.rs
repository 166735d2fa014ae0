//! Pictures to send: a few JPEG files, drawn and encoded before the clock starts.
//!
//! Where every request shall bring a picture that nobody has seen, it brings one of these with another number in its
//! comment segment. The pixels are those of one of the few, but a server that knows pictures by their bytes cannot know
//! that: it decodes, resizes and encodes as for any other.

use bytes::Bytes;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder, ImageResult, Rgb, RgbImage};

/// Files of pictures up to four megapixels, and above, where each takes longer to make.
const FILES: (u32, u32) = (16, 4);
const FOUR_MEGAPIXELS: u32 = 4_000_000;
const QUALITY: u8 = 85;
/// Marker, length and eight bytes of comment, behind the two bytes that begin every JPEG.
const COMMENT: [u8; 12] = [0xff, 0xfe, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0];
const START: usize = 2;

/// The files.
pub(crate) struct Pictures(Vec<Vec<u8>>);

impl Pictures {
    /// Draws and encodes.
    pub(crate) fn make(width: u32, height: u32) -> ImageResult<Self> {
        let large = width.saturating_mul(height) > FOUR_MEGAPIXELS;
        let count = if large { FILES.1 } else { FILES.0 };
        (0..count).map(|number| file(number, width, height)).collect::<ImageResult<_>>().map(Self)
    }

    /// Size of a file.
    pub(crate) fn mean_bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum::<usize>() / self.0.len().max(1)
    }

    /// A file that no other number gives.
    pub(crate) fn numbered(&self, number: u64) -> Bytes {
        let mut file = self.0[number as usize % self.0.len()].clone();
        let place = START + COMMENT.len() - size_of::<u64>();
        file[place..place + size_of::<u64>()].copy_from_slice(&number.to_be_bytes());
        file.into()
    }
}

fn file(number: u32, width: u32, height: u32) -> ImageResult<Vec<u8>> {
    let picture = draw(number, width, height);
    let mut encoded = Vec::new();
    JpegEncoder::new_with_quality(&mut encoded, QUALITY).write_image(
        picture.as_raw(),
        width,
        height,
        image::ExtendedColorType::Rgb8,
    )?;
    Ok([&encoded[..START], &COMMENT, &encoded[START..]].concat())
}

/// Blurred patches of colour with edges between some of them, and grain: about as many bytes as a photograph.
fn draw(number: u32, width: u32, height: u32) -> RgbImage {
    let mut state = u64::from(number) + 1;
    let mut noise = move || {
        // xorshift64*.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    let waves: [[f32; 3]; 6] =
        std::array::from_fn(|_| std::array::from_fn(|_| noise() as f32 / 4e9 * 24.0));
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        let grain = noise();
        Rgb(std::array::from_fn(|channel| {
            let [across, down, turn] = waves[channel];
            let soft = (x * across + y * down + turn).sin() * 60.0;
            let [across, down, turn] = waves[channel + 3];
            let edge = if (x * across * y * down + turn).sin() > 0.3 { 30.0 } else { 0.0 };
            let light = (118.0 + soft + edge) as i32 + (grain >> (8 * channel) & 15) as i32;
            u8::try_from(light).unwrap_or(u8::MAX)
        }))
    })
}
