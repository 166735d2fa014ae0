//! Checks from the structure of a file that the file is complete. If a file is truncated, the decoders of WebP and GIF
//! fill the rest of the picture with grey or stop early without an error, while Pillow raises an error. JPEG, PNG and
//! BMP need no such check, because their decoders read every byte.

use super::{gif, webp};
use crate::task::ImageFormat;

/// True unless the file is truncated. Bytes after the end are allowed, as in Pillow.
pub(super) fn is_complete(file: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::WebP => riff(file) && !webp::metadata_is_cut(file),
        ImageFormat::Gif => gif::first_frame(file).is_some(),
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Bmp => true,
    }
}

/// Returns the width and height from the IHDR chunk of a PNG. They are read here because the decoder rejects rows
/// beyond its memory limit before it reports the size.
pub(super) fn png_size(file: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = file.get(16..)?.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

/// Returns the number of bytes of metadata that the PNG decoder keeps from the chunks before the pixels, at most
/// `most`. A compressed ICC profile (`iCCP`) counts as its maximum inflated size, but at most as `most`; DEFLATE
/// expands one byte to at most 1,032.
pub(super) fn png_metadata_bytes(file: &[u8], most: u64) -> u64 {
    let (mut at, mut bytes) = (8, 0_u64);
    while let Some(&[l0, l1, l2, l3, ref name @ ..]) =
        file.get(at..).and_then(|file| file.first_chunk::<8>())
    {
        let length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
        match name {
            b"IDAT" => break,
            b"iCCP" => bytes += (length * 1032).min(most),
            b"tEXt" | b"zTXt" | b"iTXt" | b"eXIf" => bytes += length,
            _ => {}
        }
        at = at.saturating_add(12).saturating_add(length as usize);
    }
    bytes.min(most)
}

/// True if the file is at least as long as the RIFF header says. A missing final padding byte is tolerated.
fn riff(file: &[u8]) -> bool {
    let Some(size) = file.get(4..8).and_then(|bytes| bytes.first_chunk()) else { return false };
    let size = u64::from(u32::from_le_bytes(*size));
    file.len() as u64 >= (size & !1) + 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_the_end_do_no_harm() {
        assert!(riff(b"RIFF\x06\0\0\0WEBPxx and more"));
    }

    #[test]
    fn a_webp_must_be_as_long_as_it_says() {
        assert!(riff(b"RIFF\x06\0\0\0WEBPxx"));
        assert!(riff(b"RIFF\x07\0\0\0WEBPxx"));
        assert!(!riff(b"RIFF\x08\0\0\0WEBPxx"));
        assert!(!riff(b"RIFF\x06\0"));
    }
}
