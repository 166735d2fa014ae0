//! Whether a file is whole, told from its structure: the decoders fill the missing rest of a picture with grey or
//! stop early without an error, Pillow raises. PNG and BMP need no help, their decoders ask for every byte.

use super::{gif, webp};
use crate::task::ImageFormat;

/// Bytes after the end are allowed (as Pillow does); a file that ends early is not.
pub(super) fn is_complete(file: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Jpeg => jpeg(file).complete,
        ImageFormat::WebP => riff(file) && !webp::metadata_is_cut(file),
        ImageFormat::Gif => gif::first_frame(file).is_some(),
        ImageFormat::Png | ImageFormat::Bmp => true,
    }
}

/// Bytes that a JPEG's decoder keeps for each pixel beside the picture, until its last scan: 16 bits for every
/// coefficient where the scans of one block are apart, nothing where each block comes whole.
pub(super) fn jpeg_coefficient_bytes(file: &[u8]) -> u64 {
    let jpeg = jpeg(file);
    let apart = jpeg.progressive || jpeg.first_scan_components < jpeg.components;
    if apart { u64::from(jpeg.components) * 2 } else { 0 }
}

/// How often a JPEG's decoder walks over all `pixels`, told by the scans, a few bytes each; `None` where a file that
/// is not progressive has more scans than components, so more than it can have.
pub(super) fn jpeg_walks(file: &[u8], pixels: u64) -> Option<u64> {
    let jpeg = jpeg(file);
    if jpeg.progressive {
        return Some(jpeg.scans.saturating_mul(pixels));
    }
    (jpeg.scans <= u64::from(jpeg.components).max(1)).then_some(pixels)
}

/// The size in a PNG's first chunk; its decoder refuses rows beyond its memory limit before it tells the size.
pub(super) fn png_size(file: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = file.get(16..)?.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*rest.first_chunk()?)))
}

#[derive(Default)]
struct Jpeg {
    complete: bool,
    progressive: bool,
    /// Of the frame.
    components: u8,
    first_scan_components: u8,
    scans: u64,
}

/// Walks the markers up to the end-of-image marker. libjpeg, so Pillow, reports a file as truncated exactly when
/// that marker does not come, even if every coefficient is there.
fn jpeg(file: &[u8]) -> Jpeg {
    let mut found = Jpeg::default();
    let mut at = 2;
    while let Some((marker, next)) = next_marker(file, at) {
        at = next;
        match marker {
            0xd9 => {
                found.complete = found.scans > 0;
                return found;
            }
            // Restarts and the reserved TEM stand alone.
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let Some(&[high, low]) = file.get(at..at + 2).and_then(|pair| pair.first_chunk())
                else {
                    return found;
                };
                match marker {
                    // Frame: precision and two sides stand before the number of components.
                    0xc0..=0xc2 => {
                        found.progressive |= marker == 0xc2;
                        found.components = file.get(at + 7).copied().unwrap_or_default();
                    }
                    0xda => {
                        if found.scans == 0 {
                            found.first_scan_components =
                                file.get(at + 2).copied().unwrap_or_default();
                        }
                        found.scans += 1;
                    }
                    _ => {}
                }
                at += usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    found
}

/// The next marker at or after `at` and the place behind it. Stuffed zeros and fill bytes are not markers; bytes
/// between segments and the entropy-coded data of a scan are passed over.
fn next_marker(file: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += file.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match *file.get(at + 1)? {
            0x00 => at += 2,
            0xff => at += 1,
            marker => return Some((marker, at + 2)),
        }
    }
}

/// The size in the RIFF header must be there, and all of the metadata; a missing last padding byte is forgiven.
fn riff(file: &[u8]) -> bool {
    let Some(size) = file.get(4..8).and_then(|bytes| bytes.first_chunk()) else { return false };
    let size = u64::from(u32::from_le_bytes(*size));
    file.len() as u64 >= (size & !1) + 8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of three components without data, and a scan of so many of them.
    fn jpeg_of(frame: u8, scan_components: &[u8]) -> Vec<u8> {
        let mut file = vec![0xff, 0xd8, 0xff, frame, 0, 8, 8, 0, 16, 0, 16, 3];
        for &components in scan_components {
            file.extend([0xff, 0xda, 0, 3, components, 0x55]);
        }
        [file, vec![0xff, 0xd9]].concat()
    }

    #[test]
    fn coefficients_are_kept_where_a_block_does_not_come_whole() {
        assert_eq!(jpeg_coefficient_bytes(&jpeg_of(0xc0, &[3])), 0);
        assert_eq!(jpeg_coefficient_bytes(&jpeg_of(0xc0, &[1, 1, 1])), 6);
        assert_eq!(jpeg_coefficient_bytes(&jpeg_of(0xc2, &[3, 1])), 6);
    }

    #[test]
    fn scans_are_counted_and_only_progressive_files_have_more_than_components() {
        assert_eq!(jpeg_walks(&jpeg_of(0xc0, &[1, 1, 1]), 10), Some(10));
        assert_eq!(jpeg_walks(&jpeg_of(0xc0, &[1, 1, 1, 1]), 10), None);
        assert_eq!(jpeg_walks(&jpeg_of(0xc2, &[3, 1, 1, 1]), 10), Some(40));
    }

    /// SOI, APP1 with a whole thumbnail in it, frame, scan with stuffing, restart and fill bytes, EOI.
    const JPEG: &[u8] = b"\xff\xd8\xff\xe1\x00\x08\xff\xd8\xff\xd9..\xff\xc2\x00\x04..\xff\xda\x00\x03.ab\xff\x00c\xff\xd0d\xff\xff\xd9";

    #[test]
    fn a_jpeg_is_whole_only_with_its_end_marker() {
        assert!(jpeg(JPEG).complete);
        assert!(jpeg(JPEG).progressive);
        for length in 0..JPEG.len() {
            assert!(!jpeg(&JPEG[..length]).complete, "{length} of {} bytes", JPEG.len());
        }
    }

    #[test]
    fn bytes_behind_the_end_do_no_harm() {
        assert!(jpeg(&[JPEG, b"\xff\xd8 a second picture"].concat()).complete);
        assert!(riff(b"RIFF\x06\0\0\0WEBPxx and more"));
    }

    #[test]
    fn a_jpeg_without_a_scan_is_not_whole() {
        assert!(!jpeg(b"\xff\xd8\xff\xd9").complete);
    }

    #[test]
    fn a_webp_must_be_as_long_as_it_says() {
        assert!(riff(b"RIFF\x06\0\0\0WEBPxx"));
        assert!(riff(b"RIFF\x07\0\0\0WEBPxx"));
        assert!(!riff(b"RIFF\x08\0\0\0WEBPxx"));
        assert!(!riff(b"RIFF\x06\0"));
    }
}
