//! The string that stands for an image in a request: file bytes in base64, an address, or an id.

use super::{InputError, InputSettings};
use crate::task::ImageId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A parsed image value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageValue {
    /// A picture file, base64 undone.
    Bytes(Vec<u8>),
    /// An `http://` or `https://` address; not checked further here.
    Url(String),
    /// An image that was sent before.
    Id(ImageId),
}

const LINE_BREAK: &str = "the base64 contains line breaks, encode without wrapping (base64 -w0)";
const NOT_BASE64: &str = "it is no valid base64 (standard alphabet, padded, no white space)";

impl ImageValue {
    /// Reads an image value. The size of a base64 value is computed and checked before anything is allocated.
    ///
    /// # Errors
    /// `InvalidImageValue`, `ImageFileTooLarge`.
    pub fn parse(value: &str, settings: &InputSettings) -> Result<Self, InputError> {
        if starts_with_ignoring_case(value, "data:") {
            return decode_base64(data_uri_payload(value)?, settings);
        }
        if Self::is_url(value) {
            return Ok(Self::Url(value.to_owned()));
        }
        if value.starts_with("sha256:") {
            let problem = "an image id is \"sha256:\" and 64 lower-case hexadecimal digits";
            return value
                .parse()
                .map(Self::Id)
                .map_err(|_| InputError::InvalidImageValue { problem });
        }
        decode_base64(value, settings)
    }

    /// Whether a value is an `http://` or `https://` address.
    pub fn is_url(value: &str) -> bool {
        starts_with_ignoring_case(value, "http://") || starts_with_ignoring_case(value, "https://")
    }
}

fn starts_with_ignoring_case(value: &str, prefix: &str) -> bool {
    value
        .as_bytes()
        .get(..prefix.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// What follows the comma of `data:<anything>;base64,`; the declared type does not matter.
fn data_uri_payload(uri: &str) -> Result<&str, InputError> {
    let problem = "a data URI must be data:<type>;base64,<data>";
    let (head, payload) = uri.split_once(',').ok_or(InputError::InvalidImageValue { problem })?;
    let marker = head.len().checked_sub(";base64".len()).and_then(|start| head.get(start..));
    match marker {
        Some(marker) if marker.eq_ignore_ascii_case(";base64") => Ok(payload),
        _ => Err(InputError::InvalidImageValue { problem }),
    }
}

fn decode_base64(text: &str, settings: &InputSettings) -> Result<ImageValue, InputError> {
    let invalid = |problem| InputError::InvalidImageValue { problem };
    if text.is_empty() {
        return Err(invalid("it is empty"));
    }
    // Three bytes for every four characters, less the padding; a wrong length is found by the decoder.
    let padding = text.bytes().rev().take(2).take_while(|&byte| byte == b'=').count();
    let bytes = (text.len().div_ceil(4) * 3).saturating_sub(padding);
    if bytes > settings.max_image_bytes {
        return Err(InputError::ImageFileTooLarge { bytes, max_bytes: settings.max_image_bytes });
    }
    STANDARD.decode(text).map(ImageValue::Bytes).map_err(|_| {
        let wrapped = text.bytes().any(|byte| matches!(byte, b'\n' | b'\r'));
        invalid(if wrapped { LINE_BREAK } else { NOT_BASE64 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<ImageValue, InputError> {
        ImageValue::parse(value, &InputSettings::default())
    }

    #[test]
    fn each_kind_of_value_is_told_apart() {
        let id = format!("sha256:{}", "0f".repeat(32));
        let cases = [
            ("aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("data:image/png;base64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("data:;base64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("DATA:text/html;charset=utf-8;BASE64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("https://example.org/a.png", ImageValue::Url("https://example.org/a.png".into())),
            ("HTTP://example.org/a.png", ImageValue::Url("HTTP://example.org/a.png".into())),
            (&id, ImageValue::Id(id.parse().unwrap())),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_is_no_image_value_says_what_to_send() {
        let cases = [
            ("", "it is empty"),
            ("aGVs\nbG8=", LINE_BREAK),
            ("aGVsbG8=\r\n", LINE_BREAK),
            ("aGVs bG8=", NOT_BASE64),
            ("aGVsbG8", NOT_BASE64),
            ("aGVs-_8=", NOT_BASE64),
            ("ftp://example.org/a.png", NOT_BASE64),
            ("/etc/passwd", NOT_BASE64),
            ("data:image/png,hello", "a data URI must be data:<type>;base64,<data>"),
            ("data:image/png;base64", "a data URI must be data:<type>;base64,<data>"),
            ("sha256:12", "an image id is \"sha256:\" and 64 lower-case hexadecimal digits"),
        ];
        for (value, problem) in cases {
            assert_eq!(parse(value), Err(InputError::InvalidImageValue { problem }), "{value:?}");
        }
    }

    #[test]
    fn the_size_limit_is_exact_and_checked_before_decoding() {
        let settings = InputSettings { max_image_bytes: 64, ..InputSettings::default() };
        let at_limit = STANDARD.encode([7; 64]);
        assert_eq!(ImageValue::parse(&at_limit, &settings), Ok(ImageValue::Bytes(vec![7; 64])));
        let above = STANDARD.encode([7; 65]);
        let expected = InputError::ImageFileTooLarge { bytes: 65, max_bytes: 64 };
        assert_eq!(ImageValue::parse(&above, &settings), Err(expected));
        // Not even valid base64, but too long: the length alone refuses it.
        let garbage = "!".repeat(100);
        let expected = InputError::ImageFileTooLarge { bytes: 75, max_bytes: 64 };
        assert_eq!(ImageValue::parse(&garbage, &settings), Err(expected));
    }
}
