//! Readings of picture files by other programs than the server's own: what `claims` compares with.
//!
//! Where two readers may differ by design, the functions here return `None`: damaged or ambiguous files, in which the
//! server follows Pillow and another reader does not. Each such case is named where it is left out.

use std::io::Cursor;

use blip_server::task::ImageFormat;
use exif::{In, Tag, Value};
use image::ImageDecoder;
use image::codecs::{bmp::BmpDecoder, jpeg::JpegDecoder, webp::WebPDecoder};
use image::metadata::Orientation;

/// Returns the format by the first bytes, as the `image` crate tells it.
pub(crate) fn format(file: &[u8]) -> Option<ImageFormat> {
    let format = image::guess_format(file).ok()?;
    let subtype = format.to_mime_type().strip_prefix("image/")?;
    ImageFormat::ALL.into_iter().find(|known| known.name() == subtype)
}

/// Returns width and height of the picture as stored; `None` if the other reader rejects the file.
pub(crate) fn size(format: ImageFormat, file: &[u8]) -> Option<(u32, u32)> {
    let source = Cursor::new(file);
    match format {
        ImageFormat::Jpeg => Some(JpegDecoder::new(source).ok()?.dimensions()),
        ImageFormat::Png => png_size(file),
        ImageFormat::WebP => Some(WebPDecoder::new(source).ok()?.dimensions()),
        ImageFormat::Gif => gif_size(file),
        ImageFormat::Bmp => Some(BmpDecoder::new(source).ok()?.dimensions()),
    }
}

/// Reads the chunk IHDR, which must be the first.
fn png_size(file: &[u8]) -> Option<(u32, u32)> {
    let (head, sides) = file.split_at_checked(16)?;
    let (width, rest) = sides.split_first_chunk()?;
    let size = (u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?));
    head.ends_with(b"\0\0\0\x0dIHDR").then_some(size)
}

/// Returns the screen of a GIF, enlarged if the first frame extends beyond it.
fn gif_size(file: &[u8]) -> Option<(u32, u32)> {
    // After an empty extension, Pillow skips a second chain of sub-blocks.
    if file.windows(3).any(|bytes| matches!(bytes, [0x21, _, 0])) {
        return None;
    }
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(file).ok()?;
    let (width, height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().ok()??;
    let side =
        |screen: u16, at: u16, side: u16| u32::from(screen).max(u32::from(at) + u32::from(side));
    Some((side(width, frame.left, frame.width), side(height, frame.top, frame.height)))
}

/// Reads the orientation with the crate `kamadak-exif`, from the file to the tag. Returns it with the file's bytes in
/// which the tag says that the picture is upright; `None` if there is no valid and unambiguous orientation.
pub(crate) fn orientation(format: ImageFormat, file: &[u8]) -> Option<(Orientation, Vec<u8>)> {
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(file)).ok()?;
    let is_tag =
        |field: &&exif::Field| field.tag == Tag::Orientation && field.ifd_num == In::PRIMARY;
    let mut fields = exif.fields().filter(is_tag);
    let (field, None) = (fields.next()?, fields.next()) else { return None };
    let Value::Short(values) = &field.value else { return None };
    let &[value @ 1..=8] = values.as_slice() else { return None };
    // The entry: tag, type SHORT, one value.
    let (entry, place) = if exif.little_endian() {
        ([0x12, 1, 3, 0, 1, 0, 0, 0, value as u8, 0], 8)
    } else {
        ([1, 0x12, 0, 3, 0, 0, 0, 1, 0, value as u8], 9)
    };
    let mut places = (0..file.len()).filter(|&at| file[at..].starts_with(&entry));
    let (at, None) = (places.next()?, places.next()) else { return None };
    if !is_read_by_pillow(format, file, at) {
        return None;
    }
    let mut plain = file.to_vec();
    plain[at + place] = 1;
    Some((Orientation::from_exif(value as u8)?, plain))
}

/// True if Pillow takes the orientation from the EXIF data around the offset `at`.
fn is_read_by_pillow(format: ImageFormat, file: &[u8], at: usize) -> bool {
    let has = |range: &[u8], bytes: &[u8]| range.windows(bytes.len()).any(|found| found == bytes);
    match format {
        // EXIF data after the start of a scan is not read.
        ImageFormat::Jpeg => !has(&file[..at], b"\xff\xda"),
        // Of several chunks the last one counts, and a text chunk may hold EXIF data too.
        ImageFormat::Png => {
            let chunks = file.windows(4).filter(|name| name == b"eXIf").count();
            chunks == 1 && !has(&file[..at], b"IEND") && !has(file, b"exif")
        }
        // The flags must declare EXIF data.
        ImageFormat::WebP => {
            file.get(12..21).is_some_and(|head| head.starts_with(b"VP8X") && head[8] & 8 != 0)
        }
        ImageFormat::Gif | ImageFormat::Bmp => false,
    }
}

/// Returns where to cut a file: in half of the cases near its end, otherwise anywhere. The place depends on the content,
/// so a fuzzer tries many and a replay repeats one. `None` if every cut changes how a file is read: the length of a BMP
/// decides how much of a colour table there is.
pub(crate) fn cut(file: &[u8]) -> Option<usize> {
    if file.starts_with(b"BM") {
        return None;
    }
    let hash = file.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let most = if hash >> 63 == 0 { file.len().min(64) } else { file.len() };
    Some(file.len() - 1 - (hash >> 16) as usize % most)
}
