//! Parses the string that represents an image in a request: file bytes in base64, a URL, or an image id.
//!
//! Base64 is decoded leniently, because the alphabet, padding and white space carry no information: either alphabet
//! (RFC 4648, sections 4 and 5) is accepted, with or without padding, and with ASCII white space anywhere. Wrong
//! padding, a single character left over at the end and non-zero bits after the last byte remain errors, because they
//! are signs of damaged data.

use super::memory::{self, OutOfMemory};
use super::{InputError, InputSettings};
use crate::task::ImageId;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// A parsed image value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageValue {
    /// A picture file, decoded from base64.
    Bytes(Vec<u8>),
    /// An `http://` or `https://` URL, not checked further here.
    Url(String),
    /// The id of an image that was sent before.
    Id(ImageId),
}

const NOT_BASE64: &str = "it is not valid base64 (standard or URL-safe alphabet); send a data URI, base64, \
                          an http(s) URL, or \"sha256:\" followed by 64 hexadecimal digits";
const FILE_NAME: &str = "it is not valid base64; this looks like a file name; send the bytes of the file (with curl, \
                         write -F image=@FILE)";
const WRONG_PADDING: &str =
    "its base64 padding is wrong, so data may be missing; send the complete value";
const DATA_URI: &str = "a data URI must be data:<type>;base64,<data>";
const ID: &str = "an image id is \"sha256:\" followed by 64 hexadecimal digits";

/// Length of an image id in characters, including its prefix.
const ID_LENGTH: usize = 7 + 64;

/// Number of characters that are decoded at a time if white space must be removed first; a multiple of four.
const BLOCK: usize = 4096;

impl ImageValue {
    /// Parses an image value. Surrounding white space is ignored. The decoded size of a base64 value is computed and
    /// checked before anything is allocated.
    ///
    /// # Errors
    /// `InvalidImageValue`, `EmptyImageValue`, `ImageFileTooLarge`, `OutOfMemory`.
    pub fn parse(value: &str, settings: &InputSettings) -> Result<Self, InputError> {
        let value = value.trim_ascii();
        if starts_with_ignoring_case(value, "data:") {
            return decode_base64(data_uri_payload(value)?, settings);
        }
        if Self::is_url(value) {
            let mut url = memory::with_capacity(value.len())?;
            url.extend_from_slice(value.as_bytes());
            // The bytes come from a `str`, so they are valid UTF-8.
            return Ok(Self::Url(String::from_utf8(url).unwrap_or_default()));
        }
        if starts_with_ignoring_case(value, "sha256:") {
            // A longer value cannot be an id, so it is not copied.
            let id = Some(value).filter(|value| value.len() <= ID_LENGTH);
            let id = id.and_then(|value| value.to_ascii_lowercase().parse().ok());
            return id.map(Self::Id).ok_or(InputError::InvalidImageValue { problem: ID });
        }
        decode_base64(value, settings)
    }

    /// True if a value is an `http://` or `https://` URL.
    pub fn is_url(value: &str) -> bool {
        let value = value.trim_ascii_start();
        starts_with_ignoring_case(value, "http://") || starts_with_ignoring_case(value, "https://")
    }
}

fn starts_with_ignoring_case(value: &str, prefix: &str) -> bool {
    value
        .as_bytes()
        .get(..prefix.len())
        .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// Returns the part of a data URI after `data:<anything>;base64,`. The declared media type is ignored.
fn data_uri_payload(uri: &str) -> Result<&str, InputError> {
    let problem = DATA_URI;
    let (head, payload) = uri.split_once(',').ok_or(InputError::InvalidImageValue { problem })?;
    match head.rsplit_once(';') {
        Some((_, marker)) if marker.trim_ascii().eq_ignore_ascii_case("base64") => Ok(payload),
        Some(_) | None => Err(InputError::InvalidImageValue { problem }),
    }
}

/// Result of one pass over a base64 text, before it is decoded.
struct Base64Scan {
    /// Number of characters, excluding white space and trailing padding.
    characters: usize,
    padding: usize,
    /// True if the text can be decoded as it is: it has no white space and uses the standard alphabet.
    plain: bool,
}

impl Base64Scan {
    fn of(text: &str) -> Self {
        let mut scan = Self { characters: 0, padding: 0, plain: true };
        for byte in text.bytes() {
            match byte {
                b'=' => scan.padding += 1,
                _ if byte.is_ascii_whitespace() => scan.plain = false,
                _ => {
                    scan.plain &= !matches!(byte, b'-' | b'_');
                    // Padding inside the text is invalid. It is counted as characters, so that the decoder sees and
                    // rejects it.
                    scan.characters += 1 + std::mem::take(&mut scan.padding);
                }
            }
        }
        scan
    }

    fn bytes(&self) -> usize {
        self.characters / 4 * 3 + (self.characters % 4 * 3) / 4
    }

    /// Allocates the output buffer. The decoder requires room for whole groups of four characters, and for one more
    /// group at the end of a block.
    fn buffer(&self) -> Result<Vec<u8>, OutOfMemory> {
        memory::with_capacity((self.characters + self.padding).div_ceil(4) * 3 + 3)
    }

    fn has_right_padding(&self) -> bool {
        self.padding == 0
            || (self.padding <= 2 && (self.characters + self.padding).is_multiple_of(4))
    }
}

fn decode_base64(text: &str, settings: &InputSettings) -> Result<ImageValue, InputError> {
    let invalid = |problem| InputError::InvalidImageValue { problem };
    let scan = Base64Scan::of(text);
    if scan.characters == 0 && scan.padding == 0 {
        return Err(InputError::EmptyImageValue);
    }
    let (bytes, max_bytes) = (scan.bytes(), settings.max_image_bytes);
    if bytes > max_bytes {
        return Err(InputError::ImageFileTooLarge { bytes, max_bytes });
    }
    let mut decoded = scan.buffer()?;
    let is_valid = if scan.plain && scan.padding > 0 {
        STANDARD.decode_vec(text, &mut decoded).is_ok()
    } else if scan.plain {
        STANDARD_NO_PAD.decode_vec(text, &mut decoded).is_ok()
    } else {
        decode_without_whitespace(text, &scan, &mut decoded).is_some()
    };
    is_valid.then_some(decoded).map(ImageValue::Bytes).ok_or_else(|| {
        invalid(if has_only_base64(text) && !scan.has_right_padding() {
            WRONG_PADDING
        } else if is_like_file_name(text) {
            FILE_NAME
        } else {
            NOT_BASE64
        })
    })
}

/// Decodes a text block by block, so that a text with line breaks needs no second copy. Removes white space and
/// padding, and maps characters to the standard alphabet. Returns `None` if the text is not valid base64.
fn decode_without_whitespace(text: &str, scan: &Base64Scan, decoded: &mut Vec<u8>) -> Option<()> {
    if !scan.has_right_padding() {
        return None;
    }
    let mut block = [0_u8; BLOCK];
    let mut filled = 0;
    let picked = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).take(scan.characters);
    for byte in picked {
        block[filled] = match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        };
        filled += 1;
        if filled == BLOCK {
            STANDARD_NO_PAD.decode_vec(block, decoded).ok()?;
            filled = 0;
        }
    }
    STANDARD_NO_PAD.decode_vec(&block[..filled], decoded).ok()
}

fn has_only_base64(text: &str) -> bool {
    text.bytes().all(|byte| {
        byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+/-_=".contains(&byte)
    })
}

/// Largest length in bytes of a text that is taken for a file name or path.
const MAX_FILE_NAME: usize = 260;

/// True if a text is short and ends like the name of a picture file. Clients send such a text if they forget to send the
/// file itself, for example curl's `-F image=cat.png` without an `@`.
fn is_like_file_name(text: &str) -> bool {
    let extensions = [
        "png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "heic", "heif",
        "avif", "svg",
    ];
    let is_known =
        |(_, given): (&str, &str)| extensions.iter().any(|known| given.eq_ignore_ascii_case(known));
    text.len() <= MAX_FILE_NAME
        && !text.contains("://")
        && text.rsplit_once('.').is_some_and(is_known)
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
        let (loud, spaced) = (id.to_uppercase(), format!(" {id}\r\n"));
        let cases = [
            ("aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("data:image/png;base64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("data:;base64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("DATA:text/html;charset=utf-8;BASE64,aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("data:image/png;name=a.png; base64 , aGVsbG8=", ImageValue::Bytes(b"hello".to_vec())),
            ("\ndata:image/png;base64,aGVs\r\nbG8=\r\n", ImageValue::Bytes(b"hello".to_vec())),
            ("https://example.org/a.png", ImageValue::Url("https://example.org/a.png".into())),
            ("HTTP://example.org/a.png", ImageValue::Url("HTTP://example.org/a.png".into())),
            (" https://example.org/a.png\n", ImageValue::Url("https://example.org/a.png".into())),
            (&id, ImageValue::Id(id.parse().unwrap())),
            (&loud, ImageValue::Id(id.parse().unwrap())),
            (&spaced, ImageValue::Id(id.parse().unwrap())),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value), Ok(expected), "{value:?}");
        }
    }

    #[test]
    fn a_value_without_bytes_is_empty() {
        for value in ["", " \r\n\t", "data:image/png;base64, ", "data:;base64,"] {
            assert_eq!(parse(value), Err(InputError::EmptyImageValue), "{value:?}");
        }
    }

    #[test]
    fn what_is_no_image_value_says_what_to_send() {
        let cases = [
            ("aGVsb", NOT_BASE64),
            ("two-cats.png", FILE_NAME),
            ("demo/scenes/two-cats.JPEG", FILE_NAME),
            ("C:\\pictures\\my cat.jpg", FILE_NAME),
            ("a cat.", NOT_BASE64),
            ("notes.txt", NOT_BASE64),
            ("aGV*bG8=", NOT_BASE64),
            // U+00A0 is not ASCII white space.
            ("aGVs\u{a0}bG8=", NOT_BASE64),
            ("aGVsbG8==", WRONG_PADDING),
            ("aGVsbG8 = =", WRONG_PADDING),
            ("aGVs====", WRONG_PADDING),
            ("=", WRONG_PADDING),
            ("aG=VsbG8", NOT_BASE64),
            ("aG= VsbG8", NOT_BASE64),
            // The bits after the last byte are not zero.
            ("aGVsbG9=", NOT_BASE64),
            ("aGVsb G9", NOT_BASE64),
            ("ftp://example.org/a.png", NOT_BASE64),
            ("/etc/passwd!", NOT_BASE64),
            ("data:image/png,hello", DATA_URI),
            ("data:image/png;base64", DATA_URI),
            ("data:base64,aGVsbG8=", DATA_URI),
            ("data:image/png;base64;charset=utf-8,aGVsbG8=", DATA_URI),
            ("sha256:12", ID),
        ];
        for (value, problem) in cases {
            assert_eq!(parse(value), Err(InputError::InvalidImageValue { problem }), "{value:?}");
        }
    }

    /// Inserts `end` after every `width` characters.
    fn wrapped(text: &str, width: usize, end: &str) -> String {
        let lines: Vec<_> = text.as_bytes().chunks(width).map(String::from_utf8_lossy).collect();
        lines.join(end) + end
    }

    #[test]
    fn every_spelling_of_base64_is_the_same_bytes() {
        // The alphabets differ in the characters for the values 62 and 63. Some lengths are close to multiples of the
        // decoder's block size.
        for length in [1, 2, 3, 4, 5, 3070, 3071, 3072, 3073, 6144, 10_000] {
            let bytes: Vec<u8> = (0..length).map(|n: u32| !(n * 7 % 251) as u8).collect();
            let padded = STANDARD.encode(&bytes);
            let bare = padded.trim_end_matches('=');
            let url_safe = padded.replace('+', "-").replace('/', "_");
            let spellings = [
                padded.clone(),
                bare.to_owned(),
                url_safe.clone(),
                url_safe.trim_end_matches('=').to_owned(),
                wrapped(&padded, 76, "\n"),
                wrapped(&padded, 64, "\r\n"),
                wrapped(&url_safe, 76, "\n"),
                wrapped(bare, 1, " \t\x0c"),
                format!("\r\n{padded}\n"),
                format!("data:image/jpeg;base64,{}", wrapped(&padded, 60, "\n")),
            ];
            for spelling in spellings {
                let read = parse(&spelling);
                assert_eq!(read, Ok(ImageValue::Bytes(bytes.clone())), "{length}: {spelling:.80}");
            }
        }
    }

    #[test]
    fn decoding_never_asks_for_more_memory_than_it_reserved() {
        for length in [1, 2, 3, 4, 3069, 3070, 3071, 3072, 3073, 6143] {
            let padded = STANDARD.encode(vec![7; length]);
            for text in [padded.clone(), padded.replace('=', ""), wrapped(&padded, 76, "\n")] {
                let scan = Base64Scan::of(&text);
                let reserved = scan.buffer().unwrap().capacity();
                let Ok(ImageValue::Bytes(bytes)) = parse(&text) else { panic!("{text}") };
                assert_eq!((bytes.len(), bytes.capacity()), (length, reserved));
            }
        }
    }

    #[test]
    fn the_size_limit_is_exact_and_checked_before_decoding() {
        let settings = InputSettings { max_image_bytes: 64, ..InputSettings::default() };
        let at_limit = STANDARD.encode([7; 64]);
        let expected = Ok(ImageValue::Bytes(vec![7; 64]));
        assert_eq!(ImageValue::parse(&at_limit, &settings), expected);
        // White space does not count towards the limit.
        assert_eq!(ImageValue::parse(&wrapped(&at_limit, 1, "\r\n\r\n"), &settings), expected);
        let above = STANDARD.encode([7; 65]);
        let expected = InputError::ImageFileTooLarge { bytes: 65, max_bytes: 64 };
        for above in [above.clone(), wrapped(&above, 4, "\n"), above.replace('=', "")] {
            assert_eq!(ImageValue::parse(&above, &settings), Err(expected.clone()), "{above}");
        }
        // This is not valid base64, but the length check comes first and rejects it.
        let garbage = "!".repeat(100);
        let expected = InputError::ImageFileTooLarge { bytes: 75, max_bytes: 64 };
        assert_eq!(ImageValue::parse(&garbage, &settings), Err(expected));
    }
}
