//! Detects the format of a picture file from its first bytes, never from a name or a declared type.

use super::InputError;
use crate::task::ImageFormat;

/// Returns the format indicated by the file's first bytes.
///
/// # Errors
/// `EmptyImageFile`; `UnsupportedImageFormat` for anything but JPEG, PNG, WebP, GIF and BMP.
pub fn sniff_format(file: &[u8]) -> Result<ImageFormat, InputError> {
    match file {
        [0xff, 0xd8, 0xff, ..] => Ok(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(ImageFormat::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(ImageFormat::Gif),
        // Many texts begin with "BM", so the DIB header is checked too. Its first field is its size: one of the values
        // below, followed by three zero bytes, which no text contains. The reserved fields before the DIB header may
        // have any value.
        [b'B', b'M', rest @ ..]
            if matches!(rest.get(12..16), Some([12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0])) =>
        {
            Ok(ImageFormat::Bmp)
        }
        [] => Err(InputError::EmptyImageFile),
        _ => Err(InputError::UnsupportedImageFormat),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0";
        let cases: [(&[u8], Option<ImageFormat>); 12] = [
            (b"\xff\xd8\xff\xe0", Some(ImageFormat::Jpeg)),
            (b"\x89PNG\r\n\x1a\n", Some(ImageFormat::Png)),
            (b"RIFF\0\0\0\0WEBPVP8 ", Some(ImageFormat::WebP)),
            (b"GIF89a", Some(ImageFormat::Gif)),
            (b"GIF87a", Some(ImageFormat::Gif)),
            (bmp, Some(ImageFormat::Bmp)),
            (b"BM\0\0\0\0\x01\x02\x03\x04\x36\0\0\0\x40\0\0\0", Some(ImageFormat::Bmp)),
            (b"BM once upon a @ time", None),
            (b"BMW is a car and this is a text", None),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
            (b"RIFF\0\0\0\0WAVEfmt ", None),
            (b"", None),
        ];
        for (file, expected) in cases {
            assert_eq!(sniff_format(file).ok(), expected, "{file:?}");
        }
        assert_eq!(sniff_format(b""), Err(InputError::EmptyImageFile));
    }
}
