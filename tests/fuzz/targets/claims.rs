//! Compares what `inspect` says of a picture file with what other readers and the decoders then find: format, size,
//! memory, work, orientation and completeness. [`readers`](super::readers) holds the other readers.
//!
//! What the server says of a file decides whether the file is accepted, how much of the memory budget it takes, and how
//! long others wait for it. A file that makes these checks see something else than the decoder sees evades them.

use std::time::Duration;

use blip_server::input::{ImageHeader, InputError, InputSettings, decode, inspect, sniff_format};
use blip_server::task::{ImageFormat, Pixels};
use image::{DynamicImage, RgbImage};

use super::{allocations, readers};

/// Bytes that `inspect` or a decode may take beyond what is announced, which leaves out tables, rows and buffers of fixed
/// size.
const SLACK: u64 = 128 << 10;
/// Bytes that a rejected WebP may take in addition: the decoder allocates a partition of a lossy frame, whose length has
/// 24 bits, before it finds that the file ends earlier. It clears this memory without touching it.
const LOST_PARTITION_BYTES: u64 = 1 << 24;

/// Returns small limits, so that thousands of files that claim the largest picture are read in a second.
pub(crate) fn settings() -> InputSettings {
    let (max_pixels, max_side, max_decoded_bytes) = (1 << 17, 4096, 1 << 21);
    InputSettings { max_pixels, max_side, max_decoded_bytes, ..InputSettings::default() }
}

/// The target: `inspect` itself takes little memory, and nothing contradicts the header that it returns.
pub(crate) fn claims(data: &[u8]) {
    let Some(header) = accepted(data) else { return };
    if let Some(contradiction) = contradiction(data, &header) {
        panic!("{contradiction}, but the header says {header:?}");
    }
}

/// Returns the header of a file that `inspect` accepts.
pub(crate) fn accepted(file: &[u8]) -> Option<ImageHeader> {
    let settings = settings();
    let format = sniff_format(file).ok()?;
    let (peak, header) = allocations::peak(|| inspect(file, &settings));
    // The first frame of a GIF or WebP is copied to a file of its own; the decoder of PNGs reads the metadata.
    let metadata = if format == ImageFormat::Png { settings.max_decoded_bytes * 3 } else { 0 };
    let most = file.len() as u64 * 2 + metadata + SLACK;
    assert!(peak <= most, "inspecting {} bytes of {format:?} took {peak} bytes", file.len());
    let header = header.ok()?;
    assert_eq!(header.format, format);
    Some(header)
}

/// Returns a description of the first claim of `header` that does not hold for `file`; `None` if all hold.
pub(crate) fn contradiction(file: &[u8], header: &ImageHeader) -> Option<String> {
    let settings = settings();
    let size = (header.width, header.height);
    if readers::format(file) != Some(header.format) {
        return Some(format!("another reader takes it for {:?}", readers::format(file)));
    }
    if let Some(other) = readers::size(header.format, file).filter(|other| *other != size) {
        return Some(format!("another reader finds {} x {} pixels", other.0, other.1));
    }
    let pixels = u64::from(size.0) * u64::from(size.1);
    if !(1..=settings.max_pixels).contains(&pixels) || header.work < pixels {
        return Some("a picture beyond the limits, or with less work than pixels".to_owned());
    }
    let (peak, picture) = allocations::peak(|| decode(file, header, &settings, &|| false));
    let is_cut = header.format == ImageFormat::WebP && picture.is_err();
    let lost = if is_cut { LOST_PARTITION_BYTES } else { 0 };
    if peak > header.working_bytes + SLACK + lost {
        return Some(format!("decoding took {peak} bytes"));
    }
    let picture = match picture {
        Ok(picture) => picture,
        Err(InputError::UndecodableImage { .. }) => return None,
        // All limits were checked, and there is memory for what the header says.
        Err(error) => return Some(format!("decoding failed: {error}")),
    };
    wrong_orientation(file, header, &picture)
        .or_else(|| cut_differently(file, readers::cut(file)?, &picture))
}

/// Compares the picture with one that the `image` crate has turned by the orientation that another EXIF reader finds.
pub(crate) fn wrong_orientation(
    file: &[u8],
    header: &ImageHeader,
    picture: &Pixels,
) -> Option<String> {
    let size = (picture.width(), picture.height());
    let stored = (header.width, header.height);
    let Some((orientation, plain)) = readers::orientation(header.format, file) else {
        let turned = (size.1, size.0);
        return (size != stored && turned != stored)
            .then(|| format!("the picture has {} x {} pixels", size.0, size.1));
    };
    let (width, height) = stored;
    let plain = decode(&plain, header, &settings(), &|| false).ok()?;
    let plain = RgbImage::from_raw(plain.width(), plain.height(), plain.as_bytes().to_vec())?;
    if plain.dimensions() != (width, height) {
        return Some(format!("{:?} without an orientation", plain.dimensions()));
    }
    let mut expected = DynamicImage::ImageRgb8(plain);
    expected.apply_orientation(orientation);
    let same =
        size == (expected.width(), expected.height()) && picture.as_bytes() == expected.as_bytes();
    (!same).then(|| format!("another reader finds the orientation {orientation:?}"))
}

/// Cuts the file at the offset `end`. If what remains is still accepted as complete, it must be the same picture.
pub(crate) fn cut_differently(file: &[u8], end: usize, picture: &Pixels) -> Option<String> {
    let cut = &file[..end];
    let header = inspect(cut, &settings()).ok()?;
    let other = decode(cut, &header, &settings(), &|| false).ok()?;
    let same = (other.width(), other.height(), other.as_bytes())
        == (picture.width(), picture.height(), picture.as_bytes());
    (!same).then(|| format!("its first {end} bytes are accepted as another picture"))
}

/// Nanoseconds of CPU time that one unit of work may take in the fuzzing program, which runs several times slower than
/// the server.
const NANOSECONDS_PER_WORK: u64 = 2000;
/// CPU time below which a decode is not judged: tables, page faults and the clock's own steps dominate it.
pub(crate) const SHORT: Duration = Duration::from_millis(30);

/// Returns a description of a decode that took longer than its header says.
pub(crate) fn slower_than_announced(header: &ImageHeader, took: Duration) -> Option<String> {
    let most = Duration::from_nanos(header.work.saturating_mul(NANOSECONDS_PER_WORK)).max(SHORT);
    (took > most).then(|| format!("decoding took {took:?}, at most {most:?} is announced"))
}

/// Decodes a file without comparing anything.
pub(crate) fn picture(file: &[u8], header: &ImageHeader) -> Option<Pixels> {
    decode(file, header, &settings(), &|| false).ok()
}
