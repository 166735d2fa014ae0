//! Decodes a picture file to an upright, opaque RGB picture. Everything that can be checked from the header is checked
//! before pixels are allocated. The code for each format is in [`super::formats`].
//!
//! The results deliberately equal those of Pillow and `transformers`: only the first frame is read, the EXIF or XMP
//! orientation is applied, transparency is composited over a background, and ICC profiles are ignored. The known
//! differences are:
//! - 16-bit grey keeps its high byte (see `flatten`).
//! - The colour key of a PNG is compared at the file's own bit depth.
//! - A PNG without its last bytes is rejected even if these bytes carry no pixels.
//! - A PNG whose palette ends within a colour is rejected.
//! - A picture with damaged metadata is accepted.
//!
//! JPEG and BMP have their own decoders in this crate. The module comments of these decoders say which files they read
//! and how exact the results are. PNG, WebP and GIF are decoded through [`super::image_crate`].

use super::flatten::flatten;
use super::format::ImageHeader;
use super::formats::{implementation, sniff_format};
use super::stop::{self, Stop};
use super::turn::apply_orientation;
use super::{InputError, InputSettings};
use crate::task::Pixels;

/// Reads the header of a file and checks it against every limit. Allocates no pixels.
///
/// # Errors
/// `EmptyImageFile`, `ImageFileTooLarge`, `UnsupportedImageFormat`, `ImageTooLarge`, `DecodedImageTooLarge`,
/// `OutOfMemory`; `UndecodableImage` if the header is broken or the file is truncated.
pub fn inspect(file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
    if file.len() > settings.max_image_bytes {
        let (bytes, max_bytes) = (file.len(), settings.max_image_bytes);
        return Err(InputError::ImageFileTooLarge { bytes, max_bytes });
    }
    implementation(sniff_format(file)?).inspect(file, settings)
}

/// Decodes a file that [`inspect`] has accepted. Returns upright pixels and does not resize them. Polls `stop` between
/// rows. A lossy WebP is decoded in one call, so for such a file `stop` is polled only while the file is read.
///
/// # Errors
/// `UndecodableImage`; the errors for exceeded limits, which are enforced again during decoding; `OutOfMemory`;
/// `Stopped` if `stop` returns true.
pub fn decode(
    file: &[u8],
    header: &ImageHeader,
    settings: &InputSettings,
    stop: Stop<'_>,
) -> Result<Pixels, InputError> {
    let format = implementation(header.format);
    // The metadata is read first, so that its buffers are freed before pixels are allocated.
    let orientation = format.metadata(file)?.orientation();
    let raster = format.decode(file, header, settings, stop)?;
    stop::check(stop)?;
    let size = (raster.width, raster.height);
    let data = flatten(raster, settings.alpha_background, stop)?;
    apply_orientation(size, data, orientation, stop)
}

#[cfg(test)]
mod tests {
    use super::super::error::TRUNCATED_FILE;
    use super::*;
    use crate::task::ImageFormat;
    use image::codecs::{
        bmp::BmpEncoder, gif::GifEncoder, jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder,
    };
    use image::{ExtendedColorType, ImageEncoder};

    const WIDTH: u32 = 31;
    const HEIGHT: u32 = 17;

    fn gradient() -> Vec<u8> {
        (0..HEIGHT)
            .flat_map(|y| {
                (0..WIDTH).flat_map(move |x| [(x * 8) as u8, (y * 15) as u8, (x * y) as u8])
            })
            .collect()
    }

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let (data, colour) = (gradient(), ExtendedColorType::Rgb8);
        let mut file = Vec::new();
        let written = match format {
            ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut file, 95)
                .write_image(&data, WIDTH, HEIGHT, colour),
            ImageFormat::Png => {
                PngEncoder::new(&mut file).write_image(&data, WIDTH, HEIGHT, colour)
            }
            ImageFormat::WebP => {
                WebPEncoder::new_lossless(&mut file).write_image(&data, WIDTH, HEIGHT, colour)
            }
            ImageFormat::Gif => GifEncoder::new(&mut file).encode(&data, WIDTH, HEIGHT, colour),
            ImageFormat::Bmp => {
                BmpEncoder::new(&mut file).write_image(&data, WIDTH, HEIGHT, colour)
            }
        };
        written.unwrap();
        file
    }

    fn decode_whole(file: &[u8], settings: &InputSettings) -> Result<Pixels, InputError> {
        decode(file, &inspect(file, settings)?, settings, &|| false)
    }

    #[test]
    fn every_format_is_decoded() {
        for format in ImageFormat::ALL {
            let file = encoded(format);
            let header = inspect(&file, &InputSettings::default()).unwrap();
            assert_eq!((header.format, header.width, header.height), (format, WIDTH, HEIGHT));
            let picture = decode(&file, &header, &InputSettings::default(), &|| false).unwrap();
            assert_eq!((picture.width(), picture.height()), (WIDTH, HEIGHT), "{format:?}");
            let lossless =
                matches!(format, ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp);
            assert!(!lossless || picture.as_bytes() == gradient(), "{format:?}");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        for format in ImageFormat::ALL {
            let file = encoded(format);
            // The last bytes carry no picture data: the end marker of PNG and GIF, the padding of WebP.
            for length in 24..file.len() - 16 {
                let error = decode_whole(&file[..length], &InputSettings::default()).unwrap_err();
                assert!(
                    matches!(error, InputError::UndecodableImage { .. }),
                    "{format:?} {length}: {error}"
                );
            }
        }
    }

    #[test]
    fn the_error_for_a_damaged_file_is_in_plain_words() {
        for format in ImageFormat::ALL {
            let mut file = encoded(format);
            let middle = file.len() / 2;
            file[12..middle].fill(0xff);
            // Files with other results are skipped: some decoders still produce a picture from a damaged file, and a
            // damaged header may declare a picture that is too large.
            let Err(InputError::UndecodableImage { problem, .. }) =
                decode_whole(&file, &InputSettings::default())
            else {
                continue;
            };
            let plain = [
                TRUNCATED_FILE,
                "its data is damaged",
                "it uses a variant of its format that is not supported",
                "its header asks for too much memory",
                "it has no pixels",
                "it takes too much work to decode; save it again with fewer scans",
            ];
            assert!(plain.contains(&&*problem), "{format:?}: {problem}");
        }
    }

    #[test]
    fn limits_are_checked_from_the_header_alone() {
        let file = encoded(ImageFormat::Png);
        let (max_pixels, max_side) = (u64::from(WIDTH * HEIGHT), WIDTH);
        let at_limit = InputSettings { max_pixels, max_side, ..InputSettings::default() };
        assert!(inspect(&file, &at_limit).is_ok());
        // Only the header of the file, without the pixels.
        let head = &file[..60];
        let cases = [
            InputSettings { max_pixels: max_pixels - 1, ..at_limit.clone() },
            InputSettings { max_side: WIDTH - 1, ..at_limit.clone() },
        ];
        for settings in cases {
            let error = inspect(head, &settings).unwrap_err();
            assert!(
                matches!(error, InputError::ImageTooLarge { width: WIDTH, height: HEIGHT, .. }),
                "{error}"
            );
        }
        let bytes = max_pixels * 3;
        let settings = InputSettings { max_decoded_bytes: bytes - 1, ..at_limit.clone() };
        assert_eq!(
            inspect(head, &settings),
            Err(InputError::DecodedImageTooLarge { bytes, max_bytes: bytes - 1 })
        );
        let settings = InputSettings { max_image_bytes: file.len() - 1, ..at_limit };
        let expected =
            InputError::ImageFileTooLarge { bytes: file.len(), max_bytes: file.len() - 1 };
        assert_eq!(inspect(&file, &settings), Err(expected));
    }

    #[test]
    fn sides_that_exceed_any_memory_are_reported_as_too_large() {
        let settings = InputSettings::default();
        let too_large = |file: &[u8]| {
            let error = inspect(file, &settings).unwrap_err();
            assert!(matches!(error, InputError::ImageTooLarge { .. }), "{error}");
        };
        let mut png = encoded(ImageFormat::Png);
        png[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        too_large(&png);
        // A GIF with a screen of 1x1 pixels and a frame of 65,535 pixels a side.
        too_large(b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\0\0\0\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0\x3b");
    }

    #[test]
    fn exif_orientation_turns_the_picture() {
        // A big-endian TIFF header with one entry: tag 0x112, SHORT, 1 value, orientation 6 (turn clockwise).
        let exif = b"\xff\xe1\x00\x22Exif\0\0MM\x00\x2a\0\0\0\x08\x00\x01\x01\x12\x00\x03\0\0\0\x01\x00\x06\0\0\0\0\0\0";
        let plain = encoded(ImageFormat::Jpeg);
        let turned = [&plain[..2], exif, &plain[2..]].concat();
        let settings = InputSettings::default();
        let plain = decode_whole(&plain, &settings).unwrap();
        let turned = decode_whole(&turned, &settings).unwrap();
        assert_eq!((turned.width(), turned.height()), (HEIGHT, WIDTH));
        let pixel = |picture: &Pixels, x: u32, y: u32| {
            picture.as_bytes()[((y * picture.width() + x) * 3) as usize..][..3].to_vec()
        };
        for (x, y) in [(0, 0), (WIDTH - 1, 0), (3, HEIGHT - 1)] {
            assert_eq!(pixel(&plain, x, y), pixel(&turned, HEIGHT - 1 - y, x));
        }
    }

    #[test]
    fn transparency_shows_the_background() {
        let mut file = Vec::new();
        let pixels = [10, 20, 30, 255, 10, 20, 30, 0, 10, 127, 30, 127];
        PngEncoder::new(&mut file).write_image(&pixels, 3, 1, ExtendedColorType::Rgba8).unwrap();
        let on = |alpha_background| {
            let settings = InputSettings { alpha_background, ..InputSettings::default() };
            decode_whole(&file, &settings).unwrap().as_bytes().to_vec()
        };
        assert_eq!(on([255; 3]), [10, 20, 30, 255, 255, 255, 133, 191, 143]);
        assert_eq!(on([1, 2, 3])[..6], [10, 20, 30, 1, 2, 3]);
    }

    #[test]
    fn what_a_gif_frame_leaves_uncovered_has_the_first_colour() {
        // A GIF with a 3x1 screen and a 1x1 frame at its right end; the palette is (10, 11, 12) and white.
        let gif = b"GIF89a\x03\0\x01\0\x80\0\0\x0a\x0b\x0c\xff\xff\xff\x2c\x02\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0\x3b";
        let picture = decode_whole(gif, &InputSettings::default()).unwrap();
        assert_eq!(picture.as_bytes(), [10, 11, 12, 10, 11, 12, 255, 255, 255]);
    }
}
