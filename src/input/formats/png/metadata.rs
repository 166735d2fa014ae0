//! Finds the EXIF and XMP data of a PNG as Pillow does (`PngImagePlugin`): in the chunks `eXIf`, `tEXt`, `zTXt` and
//! `iTXt`.

use std::borrow::Cow;

use crate::input::memory::{self, OutOfMemory};
use crate::input::orientation::OrientationMetadata;

/// Maximum size in bytes of an inflated text chunk; the same as in Pillow.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Finds EXIF and XMP data. EXIF data is in an `eXIf` chunk or, in files of older programs, in a text chunk as
/// hexadecimal digits.
///
/// # Errors
/// [`OutOfMemory`].
pub(super) fn find(file: &[u8]) -> Result<OrientationMetadata<'_>, OutOfMemory> {
    let mut found = OrientationMetadata::default();
    let mut raw_profile = None;
    for (name, data) in chunks(file) {
        match name {
            b"eXIf" => found.exif = Some(Cow::Borrowed(data)),
            b"tEXt" | b"zTXt" | b"iTXt" => match text_of(name, data) {
                Some((b"exif", text)) if name == b"tEXt" => found.exif = Some(text),
                Some((b"Raw profile type exif", text)) => raw_profile = Some(text),
                Some((b"XML:com.adobe.xmp", text)) => found.xmp = Some(text),
                _ => {}
            },
            b"IEND" => break,
            _ => {}
        }
    }
    if found.exif.is_none()
        && let Some(text) = raw_profile
    {
        found.exif = from_hexadecimal(&text)?.map(Cow::Owned);
    }
    Ok(found)
}

/// True if the file has every chunk up to its last one, IEND. Like Pillow, accepts a file that lacks the checksum of this
/// chunk.
pub(super) fn is_complete(file: &[u8]) -> bool {
    chunks(file).any(|(name, _)| name == b"IEND")
}

/// True if the palette ends with a whole colour. The decoder panics on the palette of an indexed picture that does not.
pub(super) fn has_whole_colours(file: &[u8]) -> bool {
    let palette = chunks(file).find(|(name, _)| *name == b"PLTE");
    palette.is_none_or(|(_, colours)| colours.len() % 3 == 0)
}

/// Returns an upper bound on the bytes of metadata that [`find`] copies.
pub(super) fn copied_bytes(file: &[u8]) -> u64 {
    // Compressed text counts as twice its maximum inflated size (DEFLATE expands one byte to at most 1,032).
    // Uncompressed text counts as the number of bytes that its hexadecimal digits encode.
    let texts = chunks(file).map(|(name, data)| match name {
        b"zTXt" | b"iTXt" => (data.len() * 1032).min(MAX_TEXT_BYTES) * 2,
        b"tEXt" => data.len() / 2,
        _ => 0,
    });
    // At most three texts are kept: EXIF data, a raw profile, XMP data.
    (texts.sum::<usize>().min(3 * MAX_TEXT_BYTES) as u64).max(file.len() as u64 / 2)
}

/// Returns the type and the data of each complete chunk.
fn chunks(file: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = file.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (name, behind) = behind.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        let data = behind.get(..length)?;
        // Skips the CRC.
        rest = behind.get(length + 4..).unwrap_or_default();
        Some((name, data))
    })
}

/// Returns the keyword of a text chunk and its text, inflated if it is compressed; `None` if the chunk is invalid or
/// its keyword is not one of those read here.
fn text_of<'a>(name: &[u8], data: &'a [u8]) -> Option<(&'a [u8], Cow<'a, [u8]>)> {
    let (keyword, rest) = split_at_zero(data)?;
    let (text, compressed) = match name {
        b"zTXt" => (rest.get(1..)?, rest[0] == 0),
        b"iTXt" => {
            let (&[flag, method], rest) = rest.split_first_chunk()?;
            let (_, rest) = split_at_zero(rest)?;
            let (_, text) = split_at_zero(rest)?;
            if flag != 0 && method != 0 {
                return None;
            }
            (text, flag != 0)
        }
        _ => (rest, false),
    };
    let wanted: [&[u8]; 3] = [b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"];
    if !wanted.contains(&keyword) {
        return None;
    }
    if compressed {
        let text = fdeflate::decompress_to_vec_bounded(text, MAX_TEXT_BYTES).ok()?;
        return Some((keyword, Cow::Owned(text)));
    }
    Some((keyword, Cow::Borrowed(text)))
}

fn split_at_zero(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = data.iter().position(|&byte| byte == 0)?;
    Some((&data[..at], &data[at + 1..]))
}

/// Decodes a raw profile as `ImageMagick` writes it: an empty line, a line with the name, a line with the length, then
/// hexadecimal digits. `None` if the text contains anything else.
///
/// # Errors
/// [`OutOfMemory`], since the text may be as long as the file.
fn from_hexadecimal(text: &[u8]) -> Result<Option<Vec<u8>>, OutOfMemory> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3).unwrap_or_default();
    let mut bytes = memory::with_capacity(digits.len() / 2)?;
    let mut high = None;
    for digit in digits.iter().filter(|byte| !byte.is_ascii_whitespace()) {
        let Some(digit) = char::from(*digit).to_digit(16) else { return Ok(None) };
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push((high << 4 | digit) as u8),
        }
    }
    Ok(high.is_none().then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_palette_must_end_with_a_whole_colour() {
        let file = |length: u8| {
            let colours = vec![7; usize::from(length)];
            [b"\x89PNG\r\n\x1a\n\0\0\0", &[length][..], b"PLTE", &colours, b"CRC."].concat()
        };
        let accepted: Vec<u8> = (1..8).filter(|&length| has_whole_colours(&file(length))).collect();
        assert_eq!(accepted, [3, 6]);
        assert!(has_whole_colours(b"\x89PNG\r\n\x1a\n"));
    }

    #[test]
    fn profiles_in_hexadecimal_are_read() {
        let read = |text| from_hexadecimal(text).unwrap();
        assert_eq!(read(b"\nexif\n      3\n4d4d\n 2A\n"), Some(vec![0x4d, 0x4d, 0x2a]));
        assert_eq!(read(b"\nexif\n3\n4d4"), None);
        assert_eq!(read(b"\nexif\n3\n4d4g"), None);
        assert_eq!(read(b"4d4d"), Some(Vec::new()));
    }
}
