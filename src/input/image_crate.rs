//! Decodes PNG, WebP and GIF with the `image` crate, into a buffer that is allocated here.
//!
//! If an allocation inside one of the crate's decoders fails, the process aborts. Before a decoder runs,
//! [`memory::probe_available`] therefore checks that memory is available for its large buffers: the colour indices of a
//! GIF, the planes and the transparency of a WebP. Rows, metadata and code tables are not checked, because each of them
//! is either below 16 MiB or counted by `lossless`.

use std::cell::Cell;

use image::{ImageDecoder, ImageError, ImageReader, Limits};

use super::decode::{
    DAMAGED_DATA, ImageHeader, TRUNCATED_FILE, UNSUPPORTED_VARIANT, check_decoded, check_size,
    undecodable,
};
use super::memory;
use super::orientation::metadata_bytes;
use super::raster::{Layout, Raster};
use super::still::StandaloneFrame;
use super::stop::{Stop, StoppableFile};
use super::{InputError, InputSettings, lossless, structure, webp};
use crate::task::ImageFormat;

/// Limit in bytes on what a decoder may allocate while it reads the header. It is far above any row or ICC profile of a
/// real PNG, and far below a decompression bomb.
const METADATA_BYTES: u64 = 16 << 20;

/// Reads the header of a file and checks it against every limit.
///
/// # Errors
/// The same as for [`super::inspect`].
pub(super) fn inspect(
    file: &[u8],
    format: ImageFormat,
    settings: &InputSettings,
) -> Result<ImageHeader, InputError> {
    let still = open_still(file, format)?;
    if let Some((width, height)) = still.canvas {
        check_size(width, height, settings)?;
    }
    let file = &*still.file;
    if format == ImageFormat::Png
        && let Some((width, height)) = structure::png_size(file)
    {
        check_size(width, height, settings)?;
    }
    let stopped = Cell::new(false);
    let decoder = open(StoppableFile::new(file, &|| false, &stopped), format, settings);
    if decoder.is_err() && !structure::is_complete(file, format) {
        return Err(undecodable(format, TRUNCATED_FILE));
    }
    let decoder = decoder?;
    let frame = decoder.dimensions();
    let frame_pixels = check_size(frame.0, frame.1, settings)?;
    if frame_pixels == 0 {
        return Err(undecodable(format, "it has no pixels"));
    }
    let frame_bytes = decoder.total_bytes();
    let canvas_bytes = still.canvas_bytes(frame_bytes / frame_pixels);
    check_decoded(frame_bytes.max(canvas_bytes), settings)?;
    if !structure::is_complete(file, format) {
        return Err(undecodable(format, TRUNCATED_FILE));
    }
    let mut beside = bytes_inside(file, format, frame);
    if format == ImageFormat::WebP {
        if webp::frame_exceeds(file, frame) {
            return Err(undecodable(format, "a frame is larger than its canvas"));
        }
        beside += check_codes(file, frame, settings)?;
    }
    let (width, height) = still.canvas.unwrap_or(frame);
    let pixels = u64::from(width) * u64::from(height);
    let (decoded, rgb) = (frame_bytes.max(canvas_bytes), pixels * 3);
    // The maximum over four phases: decoding; frame and canvas together; the picture together with its flattened or
    // turned form; reading the metadata.
    let working_bytes = (still.file_bytes() + frame_bytes + beside)
        .max(frame_bytes + canvas_bytes)
        .max(decoded.max(rgb) + rgb)
        .max(metadata_bytes(file, format));
    let work = work(file, format, frame, frame_bytes) + pixels;
    Ok(ImageHeader { format, width, height, working_bytes, work })
}

/// Decodes a file that [`inspect`] has accepted. Returns the pixels as stored, before the orientation is applied.
///
/// # Errors
/// `UndecodableImage`, `DecodedImageTooLarge`, `OutOfMemory`, `Stopped`.
pub(super) fn decode(
    file: &[u8],
    header: &ImageHeader,
    settings: &InputSettings,
    stop: Stop<'_>,
) -> Result<Raster, InputError> {
    let still = open_still(file, header.format)?;
    let stopped = Cell::new(false);
    let file = StoppableFile::new(&still.file, stop, &stopped);
    let frame = decode_frame(file, &still.file, (header, settings), stop);
    if stopped.get() {
        return Err(InputError::Stopped);
    }
    Ok(still.on_canvas(frame?)?)
}

fn decode_frame(
    source: StoppableFile<'_>,
    file: &[u8],
    (header, settings): (&ImageHeader, &InputSettings),
    stop: Stop<'_>,
) -> Result<Raster, InputError> {
    let format = header.format;
    let refused = |error: &ImageError| refused(format, header, error, settings);
    let mut decoder = open(source, format, settings)?;
    decoder.set_limits(limits(settings.max_decoded_bytes)).map_err(|error| refused(&error))?;
    let (width, height) = decoder.dimensions();
    let layout =
        Layout::of(decoder.color_type()).ok_or_else(|| undecodable(format, UNSUPPORTED_VARIANT))?;
    let length = usize::try_from(decoder.total_bytes())
        .map_err(|_| memory::OutOfMemory { bytes: decoder.total_bytes() })?;
    let mut data: Vec<u8> = memory::filled_until::<_, InputError>(0, length, stop)?;
    memory::probe_available(bytes_inside(file, format, (width, height)))?;
    decoder.read_image(&mut data).map_err(|error| refused(&error))?;
    Ok(Raster { width, height, layout, data })
}

/// Returns the file to be decoded: for WebP and GIF, a rewritten file with only the first frame; otherwise, the
/// client's own.
fn open_still(file: &[u8], format: ImageFormat) -> Result<StandaloneFrame<'_>, InputError> {
    StandaloneFrame::of(file, format)?.ok_or_else(|| {
        let whole = structure::is_complete(file, format);
        undecodable(format, if whole { DAMAGED_DATA } else { TRUNCATED_FILE })
    })
}

/// Estimates, from the size of the frame, how many bytes a decoder allocates besides the frame buffer.
fn bytes_inside(file: &[u8], format: ImageFormat, frame: (u32, u32)) -> u64 {
    let pixels = u64::from(frame.0) * u64::from(frame.1);
    match format {
        // Colour indices of one byte per pixel, before they are mapped to colours.
        ImageFormat::Gif => pixels,
        ImageFormat::WebP => {
            let parts = webp::parts(file, frame);
            // Planes of whole macroblocks, 16 pixels a side: one for luma, and two for chroma with half the width and
            // height.
            let side = |side: u32| u64::from(side).next_multiple_of(16);
            let lossy = parts.lossy.map_or(0, |_| side(frame.0) * side(frame.1) * 3 / 2);
            let lossless = parts.lossless.map_or(0, |stream| {
                // Four channels; for an alpha channel, also a copy of one of them. The predictor, colour and entropy
                // images have one pixel for each 4 x 4 block.
                let block = |side: u32| u64::from(side.div_ceil(4));
                pixels * if stream.is_alpha { 5 } else { 4 } + block(frame.0) * block(frame.1) * 12
            });
            let plain_alpha = if parts.plain_alpha { pixels } else { 0 };
            lossy + lossless + plain_alpha
        }
        // Metadata; the decoder also holds a few rows, which do not count.
        ImageFormat::Png => structure::png_metadata_bytes(file, METADATA_BYTES),
        ImageFormat::Jpeg | ImageFormat::Bmp => 0,
    }
}

/// Returns the size in bytes of a lossless picture's code tables, checked against `max_decoded_bytes`: the decoder
/// allocates them without a limit.
fn check_codes(
    file: &[u8],
    frame: (u32, u32),
    settings: &InputSettings,
) -> Result<u64, InputError> {
    match lossless::code_bytes(file, frame, settings.max_decoded_bytes) {
        Ok(bytes) => check_decoded(bytes, settings).map(|()| bytes),
        Err(lossless::Malformed) => Err(undecodable(ImageFormat::WebP, DAMAGED_DATA)),
    }
}

/// Returns the limits for a decoder: `max_bytes` bounds the decoder's own allocations, such as rows and metadata of a
/// PNG.
fn limits(max_bytes: u64) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_bytes);
    limits
}

fn open<'file>(
    file: StoppableFile<'file>,
    format: ImageFormat,
    settings: &InputSettings,
) -> Result<impl ImageDecoder + 'file, InputError> {
    let format_of_crate = match format {
        // Never used here, since these formats have decoders of our own.
        ImageFormat::Jpeg | ImageFormat::Bmp => {
            return Err(undecodable(format, UNSUPPORTED_VARIANT));
        }
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Gif => image::ImageFormat::Gif,
    };
    let mut reader = ImageReader::with_format(file, format_of_crate);
    reader.limits(limits(METADATA_BYTES.min(settings.max_decoded_bytes)));
    reader.into_decoder().map_err(|error| undecodable(format, describe(&error)))
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

/// Maps a decoder error to one of a fixed set of reasons for the client. The decoder's own message goes to the log.
fn describe(error: &ImageError) -> &'static str {
    tracing::debug!(%error, "an image decoder rejected a file");
    if let ImageError::IoError(io) = error
        && io.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return TRUNCATED_FILE;
    }
    match error {
        ImageError::Unsupported(_) => UNSUPPORTED_VARIANT,
        ImageError::Limits(_) => "its header asks for too much memory",
        ImageError::Decoding(_)
        | ImageError::Encoding(_)
        | ImageError::Parameter(_)
        | ImageError::IoError(_) => DAMAGED_DATA,
    }
}

/// Estimates the cost of decoding in the unit of [`ImageHeader::work`], one pixel of a plain JPEG. The factors were
/// measured on pictures of 50 megapixels.
fn work(file: &[u8], format: ImageFormat, frame: (u32, u32), frame_bytes: u64) -> u64 {
    let pixels = u64::from(frame.0) * u64::from(frame.1);
    match format {
        // The cost of a PNG is proportional to the size of its rows in bytes.
        ImageFormat::Png => frame_bytes / 2,
        ImageFormat::Gif => pixels * 3,
        ImageFormat::WebP => {
            let parts = webp::parts(file, frame);
            let (lossy, lossless) = (parts.lossy.is_some(), parts.lossless.is_some());
            pixels * (u64::from(lossy) * 2 + u64::from(lossless) * 4)
        }
        ImageFormat::Jpeg | ImageFormat::Bmp => pixels,
    }
}
