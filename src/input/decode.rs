//! A picture file to an upright, opaque RGB picture; everything a header can tell is checked before pixels exist.
//!
//! Deliberately as Pillow and `transformers` do it: the first frame alone, the orientation of EXIF or XMP applied,
//! transparency on a background. Not copied: ICC profiles are ignored (by both), 16-bit grey keeps its high byte (see
//! `flatten`), the colour key of a PNG is compared at the file's own bit depth, a PNG without its last bytes is refused
//! even where they carry no pixel, and damaged metadata is no reason to refuse a picture. JPEG and BMP have decoders of
//! our own ([`super::jpeg`], [`super::bmp`]): what is exact there, and what is not read, is written at their beginning.
//! WebP and GIF go through [`super::still`].

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, RgbImage};

use super::flatten::flatten;
use super::jpeg::{self, JpegError};
use super::orientation::orientation;
use super::still::Still;
use super::{
    InputError, InputSettings, Picture, bmp, gif, lossless, sniff_format, structure, webp,
};
use crate::task::ImageFormat;

/// What a file says before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The format, by its first bytes.
    pub format: ImageFormat,
    /// Width in pixels as stored, before EXIF rotation.
    pub width: u32,
    /// Height in pixels as stored, before EXIF rotation.
    pub height: u32,
    /// Most bytes that decoding and flattening hold at one time, estimated from the header.
    pub working_bytes: u64,
}

/// Reads the header and checks it against every limit; allocates no pixels.
///
/// # Errors
/// `ImageFileTooLarge`, `UnsupportedImageFormat`, `ImageTooLarge`, `DecodedImageTooLarge`, `UndecodableImage` (a
/// broken header, a file that ends early).
pub fn inspect(file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
    if file.len() > settings.max_image_bytes {
        let (bytes, max_bytes) = (file.len(), settings.max_image_bytes);
        return Err(InputError::ImageFileTooLarge { bytes, max_bytes });
    }
    let format = sniff_format(file)?;
    if format == ImageFormat::Jpeg {
        return inspect_jpeg(file, settings);
    }
    if format == ImageFormat::Bmp {
        return inspect_bmp(file, settings);
    }
    let still = open_still(file, format)?;
    if let Some((width, height)) = still.canvas {
        check_size(width, height, settings)?;
    }
    let (file, beside) = (&*still.file, still.bytes());
    if format == ImageFormat::Png
        && let Some((width, height)) = structure::png_size(file)
    {
        check_size(width, height, settings)?;
    }
    let decoder = open(file, format, settings);
    if decoder.is_err() && !structure::is_complete(file, format) {
        return Err(undecodable(format, INCOMPLETE));
    }
    let decoder = decoder?;
    let (width, height) = decoder.dimensions();
    let pixels = check_size(width, height, settings)?;
    if pixels == 0 {
        return Err(undecodable(format, "it has no pixels"));
    }
    let (bytes, max_bytes) = (decoder.total_bytes(), settings.max_decoded_bytes);
    if bytes > max_bytes {
        return Err(InputError::DecodedImageTooLarge { bytes, max_bytes });
    }
    if !structure::is_complete(file, format) {
        return Err(undecodable(format, INCOMPLETE));
    }
    if format == ImageFormat::WebP && webp::frame_exceeds(file, (width, height)) {
        return Err(undecodable(format, "a frame is larger than its canvas"));
    }
    let mut working_bytes = bytes + pixels * bytes_beside(format) + beside;
    if format == ImageFormat::WebP {
        working_bytes += check_codes(file, (width, height), settings)?;
    }
    if format == ImageFormat::Gif
        && let Some(frame) = gif::first_frame(file)
    {
        // A frame that does not fill the screen is decoded beside it.
        working_bytes += u64::from(frame.sides.0) * u64::from(frame.sides.1) * 4;
    }
    let (width, height) = still.canvas.unwrap_or((width, height));
    Ok(ImageHeader { format, width, height, working_bytes })
}

fn inspect_bmp(file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
    let header = bmp::Header::read(file).map_err(refused_bmp)?;
    let (width, height, format) = (header.width, header.height, ImageFormat::Bmp);
    let pixels = check_size(width, height, settings)?;
    if pixels == 0 {
        return Err(undecodable(format, "it has no pixels"));
    }
    let (bytes, max_bytes) = (pixels * header.bytes_per_pixel(), settings.max_decoded_bytes);
    if bytes > max_bytes {
        return Err(InputError::DecodedImageTooLarge { bytes, max_bytes });
    }
    header.check_length(file).map_err(refused_bmp)?;
    // Compressed data are unpacked to an index a pixel first; turning and flattening need no more than that.
    let working_bytes = bytes + pixels * bytes_beside(format);
    Ok(ImageHeader { format, width, height, working_bytes })
}

fn refused_bmp(refusal: bmp::Refusal) -> InputError {
    let problem = match refusal {
        bmp::Refusal::Incomplete => INCOMPLETE,
        bmp::Refusal::Unsupported => VARIANT,
        bmp::Refusal::Damaged => DAMAGED,
    };
    undecodable(ImageFormat::Bmp, problem)
}

/// The file that is decoded in place of the client's.
fn open_still(file: &[u8], format: ImageFormat) -> Result<Still<'_>, InputError> {
    Still::of(file, format).ok_or_else(|| {
        let whole = structure::is_complete(file, format);
        undecodable(format, if whole { DAMAGED } else { INCOMPLETE })
    })
}

/// The number of pixels, within the limits.
fn check_size(width: u32, height: u32, settings: &InputSettings) -> Result<u64, InputError> {
    let &InputSettings { max_pixels, max_side, .. } = settings;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels || width > max_side || height > max_side {
        return Err(InputError::ImageTooLarge { width, height, max_pixels, max_side });
    }
    Ok(pixels)
}

/// The head of a JPEG, by the decoder that will read the rest.
fn inspect_jpeg(file: &[u8], settings: &InputSettings) -> Result<ImageHeader, InputError> {
    let jpeg::JpegInfo { width, height, working_bytes } =
        jpeg::read_header(file).map_err(refused_jpeg)?;
    let pixels = check_size(width, height, settings)?;
    let (bytes, max_bytes) = (pixels * 3, settings.max_decoded_bytes);
    if bytes > max_bytes {
        return Err(InputError::DecodedImageTooLarge { bytes, max_bytes });
    }
    // Turning by EXIF needs the picture a second time, when everything else is gone.
    let working_bytes = working_bytes.max(bytes * 2);
    Ok(ImageHeader { format: ImageFormat::Jpeg, width, height, working_bytes })
}

/// The pixels of a JPEG, as stored.
fn decode_jpeg(file: &[u8], settings: &InputSettings) -> Result<DynamicImage, InputError> {
    let max_blocks = settings.max_pixels.saturating_mul(MAX_FULL_SIZE_WALKS) / 64;
    let jpeg::Decoded { width, height, data } =
        jpeg::decode(file, jpeg::Limits { max_blocks }).map_err(refused_jpeg)?;
    RgbImage::from_raw(width, height, data)
        .map(DynamicImage::ImageRgb8)
        .ok_or_else(|| undecodable(ImageFormat::Jpeg, "its data is damaged"))
}

fn refused_jpeg(error: JpegError) -> InputError {
    InputError::UndecodableImage { format: ImageFormat::Jpeg, problem: error.to_string() }
}

/// Bytes of a lossless picture's code tables, which the decoder allocates without a limit.
fn check_codes(
    file: &[u8],
    canvas: (u32, u32),
    settings: &InputSettings,
) -> Result<u64, InputError> {
    let max_bytes = settings.max_decoded_bytes;
    match lossless::code_bytes(file, canvas, max_bytes) {
        Ok(bytes) if bytes > max_bytes => {
            Err(InputError::DecodedImageTooLarge { bytes, max_bytes })
        }
        Ok(bytes) => Ok(bytes),
        Err(lossless::Malformed) => Err(undecodable(ImageFormat::WebP, DAMAGED)),
    }
}

/// How often the scans of a JPEG of the most pixels may walk over one of its components; a smaller one in proportion
/// more. Encoders write about ten scans: 20 walks for three components, 40 for four of full size. libjpeg has no
/// bound, and a scan costs a few bytes.
const MAX_FULL_SIZE_WALKS: u64 = 48;

/// Decodes a file that [`inspect`] has passed.
///
/// # Errors
/// `UndecodableImage`; the limits of `settings` are enforced a second time while decoding.
pub fn decode(
    file: &[u8],
    header: &ImageHeader,
    settings: &InputSettings,
) -> Result<Picture, InputError> {
    let format = header.format;
    let mut image = match format {
        ImageFormat::Jpeg => decode_jpeg(file, settings)?,
        ImageFormat::Bmp => bmp::decode(file).map_err(refused_bmp)?,
        ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif => {
            decode_still(&open_still(file, format)?, header, settings)?
        }
    };
    image.apply_orientation(orientation(file, format));
    let (width, height) = (image.width(), image.height());
    let data = flatten(image, settings.alpha_background)
        .map_err(|_| undecodable(format, "its colour type is not supported"))?;
    Ok(Picture::new(width, height, data))
}

/// The pixels of PNG, WebP and GIF, as stored.
fn decode_still(
    still: &Still<'_>,
    header: &ImageHeader,
    settings: &InputSettings,
) -> Result<DynamicImage, InputError> {
    let (format, file) = (header.format, &*still.file);
    let refused = |error: &ImageError| refused(format, header, error, settings);
    let mut decoder = open(file, format, settings)?;
    decoder.set_limits(limits(settings.max_decoded_bytes)).map_err(|error| refused(&error))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| refused(&error))?;
    if format == ImageFormat::Gif {
        fill_uncovered(&mut image, file);
    }
    Ok(still.on_canvas(image))
}

/// Far above any row and any colour profile of a real PNG, far below a profile that is a bomb.
const METADATA_BYTES: u64 = 16 << 20;

const INCOMPLETE: &str = "the file ends before its picture is complete";
const DAMAGED: &str = "its data is damaged";
const VARIANT: &str = "it uses a variant of its format that is not read";

/// What a decoder, the turning or the flattening holds beside the decoded pixels, bytes per pixel.
fn bytes_beside(format: ImageFormat) -> u64 {
    match format {
        // Lossless frames are decoded to four channels first.
        ImageFormat::WebP => 4,
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Gif | ImageFormat::Bmp => 3,
    }
}

/// `max_bytes` bounds what a decoder allocates for itself: a GIF's frame, a PNG's rows and metadata.
fn limits(max_bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_bytes);
    limits
}

fn open<'file>(
    file: &'file [u8],
    format: ImageFormat,
    settings: &InputSettings,
) -> Result<impl ImageDecoder + 'file, InputError> {
    let format_of_crate = match format {
        // Read by decoders of our own before this one is asked for.
        ImageFormat::Jpeg | ImageFormat::Bmp => return Err(undecodable(format, VARIANT)),
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
    };
    let mut reader = ImageReader::with_format(Cursor::new(file), format_of_crate);
    reader.limits(limits(METADATA_BYTES.min(settings.max_decoded_bytes)));
    reader.into_decoder().map_err(|error| undecodable(format, describe(&error)))
}

/// Pillow paints what the first frame leaves uncovered with the palette's first colour, unless a colour is
/// transparent (`GifImagePlugin.load_prepare`); the decoder leaves it clear, as nothing else is then.
fn fill_uncovered(image: &mut DynamicImage, file: &[u8]) {
    let (DynamicImage::ImageRgba8(pixels), Some(frame)) = (image, gif::first_frame(file)) else {
        return;
    };
    if frame.transparent.is_none() {
        let [red, green, blue] = frame.colour(0);
        for pixel in pixels.pixels_mut().filter(|pixel| pixel.0[3] == 0) {
            pixel.0 = [red, green, blue, 255];
        }
    }
}

fn refused(
    format: ImageFormat,
    header: &ImageHeader,
    error: &ImageError,
    settings: &InputSettings,
) -> InputError {
    if matches!(error, ImageError::Limits(_)) {
        let (bytes, max_bytes) = (header.working_bytes, settings.max_decoded_bytes);
        return InputError::DecodedImageTooLarge { bytes, max_bytes };
    }
    undecodable(format, describe(error))
}

/// A plain reason from a closed set; the decoder's own words are for programmers and go to the log.
fn describe(error: &ImageError) -> &'static str {
    tracing::debug!(%error, "a decoder refused a file");
    if let ImageError::IoError(io) = error
        && io.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return INCOMPLETE;
    }
    match error {
        ImageError::Unsupported(_) => VARIANT,
        ImageError::Limits(_) => "its header asks for too much memory",
        ImageError::Decoding(_)
        | ImageError::Encoding(_)
        | ImageError::Parameter(_)
        | ImageError::IoError(_) => DAMAGED,
    }
}

fn undecodable(format: ImageFormat, problem: &str) -> InputError {
    InputError::UndecodableImage { format, problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn decode_whole(file: &[u8], settings: &InputSettings) -> Result<Picture, InputError> {
        decode(file, &inspect(file, settings)?, settings)
    }

    #[test]
    fn every_format_is_decoded() {
        for format in ImageFormat::ALL {
            let file = encoded(format);
            let header = inspect(&file, &InputSettings::default()).unwrap();
            assert_eq!((header.format, header.width, header.height), (format, WIDTH, HEIGHT));
            let picture = decode(&file, &header, &InputSettings::default()).unwrap();
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
            // The last bytes carry no picture: a PNG's and a GIF's end marker, a WebP's padding.
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
    fn a_damaged_file_is_told_in_plain_words() {
        for format in ImageFormat::ALL {
            let mut file = encoded(format);
            let middle = file.len() / 2;
            file[12..middle].fill(0xff);
            // Some decoders make a picture of it, and a header may declare too large a one.
            let Err(InputError::UndecodableImage { problem, .. }) =
                decode_whole(&file, &InputSettings::default())
            else {
                continue;
            };
            let plain = [
                INCOMPLETE,
                "its data is damaged",
                "it uses a variant of its format that is not read",
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
        // The header and nothing else: the pixels are never asked for.
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
    fn sides_that_no_memory_holds_are_told_as_too_large() {
        let settings = InputSettings::default();
        let too_large = |file: &[u8]| {
            let error = inspect(file, &settings).unwrap_err();
            assert!(matches!(error, InputError::ImageTooLarge { .. }), "{error}");
        };
        let mut png = encoded(ImageFormat::Png);
        png[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        too_large(&png);
        // A 1x1 screen and a frame of 65,535 a side on it.
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
        let pixel = |picture: &Picture, x: u32, y: u32| {
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
        // 3x1 screen, 1x1 frame at the right; palette: (10, 11, 12), white.
        let gif = b"GIF89a\x03\0\x01\0\x80\0\0\x0a\x0b\x0c\xff\xff\xff\x2c\x02\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0\x3b";
        let picture = decode_whole(gif, &InputSettings::default()).unwrap();
        assert_eq!(picture.as_bytes(), [10, 11, 12, 10, 11, 12, 255, 255, 255]);
    }
}
