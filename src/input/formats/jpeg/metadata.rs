//! Finds the EXIF and XMP data of a JPEG as Pillow does (`JpegImagePlugin.APP`).

use std::borrow::Cow;

use super::source::{ByteSource, Segment, marker};
use crate::input::memory::OutOfMemory;
use crate::input::orientation::OrientationMetadata;

/// Finds the EXIF and XMP data before the first scan. EXIF data of several segments is joined; of several XMP segments,
/// the last one is used. If a segment cannot be read, it and everything after it are ignored.
///
/// # Errors
/// [`OutOfMemory`], because joined EXIF segments may be as long as the file.
pub(super) fn find(file: &[u8]) -> Result<OrientationMetadata<'_>, OutOfMemory> {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut found = OrientationMetadata::default();
    let mut source = ByteSource::new(file);
    if source.start_of_image().is_err() {
        return Ok(found);
    }
    while let Ok(code) = source.marker() {
        source.clear_pending();
        match code {
            marker::SOS => break,
            marker::TEM | marker::RST0..=marker::EOI => continue,
            _ => {}
        }
        let Ok(data) = source.segment().and_then(Segment::rest) else { break };
        if code == marker::APP1 && data.starts_with(EXIF) {
            match &mut found.exif {
                Some(exif) => append(exif, &data[EXIF.len()..])?,
                none => *none = Some(Cow::Borrowed(data)),
            }
        } else if code == marker::APP1
            && let Some(xmp) = data.strip_prefix(XMP)
        {
            found.xmp = Some(Cow::Borrowed(xmp));
        }
    }
    Ok(found)
}

/// Returns an upper bound on the memory in bytes that [`find`] takes: EXIF data from several segments is joined in one
/// buffer that grows by doubling, and takes three times the length of its content while the content moves.
pub(super) fn copied_bytes(file: &[u8]) -> u64 {
    file.len() as u64 * 3
}

fn append(exif: &mut Cow<'_, [u8]>, piece: &[u8]) -> Result<(), OutOfMemory> {
    // This copies the first segment. It is at most 64 KiB long, so the allocation is not checked.
    let exif = exif.to_mut();
    let refused = OutOfMemory { bytes: (exif.len() + piece.len()) as u64 };
    exif.try_reserve(piece.len()).map_err(|_| refused)?;
    exif.extend_from_slice(piece);
    Ok(())
}
