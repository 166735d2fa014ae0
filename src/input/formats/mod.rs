//! The picture formats, one module each. A module holds everything about its format: the first bytes, the header, the
//! checks and limits, the decoder, and the place where the orientation is stored. No module imports another.
//!
//! To add a format, add its module here, its line in [`implementation`], and its variant of [`ImageFormat`].

mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use super::InputError;
use super::format::PictureFormat;
use crate::task::ImageFormat;

/// Returns the implementation of a format.
pub(super) fn implementation(format: ImageFormat) -> &'static dyn PictureFormat {
    match format {
        ImageFormat::Jpeg => &jpeg::Jpeg,
        ImageFormat::Png => &png::Png,
        ImageFormat::WebP => &webp::WebP,
        ImageFormat::Gif => &gif::Gif,
        ImageFormat::Bmp => &bmp::Bmp,
    }
}

/// Returns the format indicated by the file's first bytes, never by a name or a declared type.
///
/// # Errors
/// `EmptyImageFile`; `UnsupportedImageFormat` for anything but the formats in [`ImageFormat::ALL`].
pub fn sniff_format(file: &[u8]) -> Result<ImageFormat, InputError> {
    if file.is_empty() {
        return Err(InputError::EmptyImageFile);
    }
    let mut formats = ImageFormat::ALL.into_iter();
    formats
        .find(|&format| implementation(format).matches(file))
        .ok_or(InputError::UnsupportedImageFormat)
}

/// True if [`super::inspect`] takes only microseconds for a small file of this format. False for formats whose metadata
/// `inspect` may have to inflate, and for files of unknown format.
#[must_use]
pub fn is_quick_to_inspect(file: &[u8]) -> bool {
    sniff_format(file).is_ok_and(|format| implementation(format).is_quick_to_inspect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
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
            let claims = |&format: &ImageFormat| implementation(format).matches(file);
            let claimed: Vec<_> = ImageFormat::ALL.into_iter().filter(claims).collect();
            assert_eq!(claimed, Vec::from_iter(expected), "{file:?}");
        }
        assert_eq!(sniff_format(b""), Err(InputError::EmptyImageFile));
    }

    #[test]
    fn only_our_own_readers_are_quick_to_inspect() {
        let quick = ImageFormat::ALL
            .into_iter()
            .filter(|&format| implementation(format).is_quick_to_inspect());
        assert_eq!(quick.collect::<Vec<_>>(), [ImageFormat::Jpeg, ImageFormat::Bmp]);
        assert!(is_quick_to_inspect(b"\xff\xd8\xff\xe0"));
        assert!(!is_quick_to_inspect(b"GIF89a") && !is_quick_to_inspect(b"text"));
    }
}
