//! Parses the `content-disposition` and `content-type` of a multipart part, in all forms that browsers and client
//! libraries write. `multipart` calls this; `head` uses only the functions for charsets.
//!
//! RFC 7578 requires `form-data; name="image"; filename="a.jpg"`. Real clients also send names without quotes,
//! `filename*` (RFC 5987) alone or together with `filename`, file names in Latin-1 or any other encoding, encoded words
//! (RFC 2047), quoted pairs, and backslashes that belong to a path. Only the presence of a file name matters, not its
//! text or encoding: a part whose file name is not UTF-8 still contains an image, not text.

use axum::http::{HeaderMap, header};

/// What the header fields of a part say about its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disposition {
    /// Name of the form field; bytes that are not UTF-8 are replaced.
    pub(super) name: String,
    file_name: FileName,
    /// True if the content type is `image/*` or `application/octet-stream`.
    is_binary: bool,
    /// True if the declared charset is not compatible with UTF-8. In that case, the part may contain only ASCII text.
    pub(super) foreign_charset: bool,
}

/// The `filename` or `filename*` of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileName {
    Absent,
    /// HTML forms send an empty name for a file input without a selection.
    Empty,
    Given,
}

impl FileName {
    /// Adds the value of a parameter. A part may have both parameters.
    fn add(&mut self, is_empty: bool) {
        if *self != Self::Given {
            *self = if is_empty { Self::Empty } else { Self::Given };
        }
    }
}

impl Disposition {
    /// Parses the header fields of a part. Returns `None` if they do not name a form field.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let given = headers.get(header::CONTENT_DISPOSITION)?.as_bytes();
        let mut name = None;
        let mut file_name = FileName::Absent;
        for (key, value) in parameters(given) {
            if key.eq_ignore_ascii_case(b"name") {
                name.get_or_insert(value);
            } else if key.eq_ignore_ascii_case(b"filename") {
                file_name.add(value.is_empty());
            } else if key.eq_ignore_ascii_case(b"filename*") {
                // A charset and a language come first: `utf-8'en'cat.png` (RFC 5987).
                file_name.add(value.is_empty() || value.ends_with(b"''"));
            }
        }
        let name = String::from_utf8_lossy(&name?).into_owned();
        let media_type = headers.get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
        let media_type = media_type.unwrap_or_default();
        Some(Self {
            name,
            file_name,
            is_binary: is_binary(media_type),
            foreign_charset: charset(media_type).is_some_and(|name| !is_utf8_compatible(&name)),
        })
    }

    /// True if the part contains the bytes of an image, false if it contains text.
    pub(super) fn is_file(&self) -> bool {
        self.file_name != FileName::Absent || self.is_binary
    }

    /// True if the part has a file name that is not empty.
    pub(super) fn names_file(&self) -> bool {
        self.file_name == FileName::Given
    }
}

fn is_binary(media_type: &[u8]) -> bool {
    let essence = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    let is_image = essence.get(..6).is_some_and(|kind| kind.eq_ignore_ascii_case(b"image/"));
    is_image || essence.eq_ignore_ascii_case(b"application/octet-stream")
}

/// Returns the `charset` parameter of a content type, in lower case; `None` if it is missing or empty.
pub(super) fn charset(media_type: &[u8]) -> Option<String> {
    let charset = parameters(media_type).find(|(key, _)| key.eq_ignore_ascii_case(b"charset"));
    let charset = String::from_utf8_lossy(&charset?.1).to_ascii_lowercase();
    let charset = charset.trim_matches(['\'', ' ']).to_owned();
    (!charset.is_empty()).then_some(charset)
}

/// True if every text in this charset is also valid UTF-8. US-ASCII is a subset of UTF-8. Clients that declare US-ASCII
/// but send UTF-8 are accepted too, because bytes above 127 have no other meaning in US-ASCII.
pub(super) fn is_utf8_compatible(charset: &str) -> bool {
    ["utf-8", "utf8", "us-ascii", "ascii", "ansi_x3.4-1968", "iso646-us", "unicode-1-1-utf-8"]
        .contains(&charset)
}

/// True if this charset encodes ASCII characters with the same bytes as ASCII. Text in such a charset can be read as
/// UTF-8 if it contains only ASCII characters.
pub(super) fn is_ascii_superset(charset: &str) -> bool {
    let families = ["iso-8859-", "iso8859-", "iso_8859-", "windows-125", "cp125", "koi8-", "euc-"];
    ["latin1", "latin-1", "l1", "gbk", "gb2312", "gb18030", "big5", "shift_jis"].contains(&charset)
        || families.iter().any(|family| charset.starts_with(family))
}

/// Iterates over the parameters after the first `;` of a header value. Each item is the name and the value without its
/// quotes.
fn parameters(value: &[u8]) -> impl Iterator<Item = (&[u8], Vec<u8>)> {
    let start = value.iter().position(|&byte| byte == b';').unwrap_or(value.len());
    let mut rest = &value[start..];
    std::iter::from_fn(move || {
        loop {
            rest = rest.split_first()?.1.trim_ascii_start();
            let key_end = rest.iter().position(|byte| b"=;".contains(byte)).unwrap_or(rest.len());
            let key = rest[..key_end].trim_ascii_end();
            rest = &rest[key_end..];
            if rest.first() != Some(&b'=') {
                // Skip a parameter without a value. `rest` now starts at the next semicolon.
                continue;
            }
            let given = rest[1..].trim_ascii_start();
            let (text, after) = if let Some((b'"', quoted)) = given.split_first() {
                unquoted(quoted)
            } else {
                let end = given.iter().position(|&byte| byte == b';').unwrap_or(given.len());
                (given[..end].trim_ascii_end().to_vec(), &given[end..])
            };
            let next = after.iter().position(|&byte| byte == b';').unwrap_or(after.len());
            rest = &after[next..];
            return Some((key, text));
        }
    })
}

/// Splits `quoted`, which starts after an opening quote, into the string before the closing quote and the rest after
/// it. `\"` and `\\` are escapes. Any other backslash is kept, because some clients send paths that contain
/// backslashes.
fn unquoted(quoted: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut text = Vec::new();
    let mut rest = quoted;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after.split_first()) {
            (b'"', _) => return (text, after),
            (b'\\', Some((&escaped @ (b'"' | b'\\'), after))) => {
                text.push(escaped);
                after
            }
            (_, _) => {
                text.push(byte);
                after
            }
        };
    }
    (text, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn of(disposition: &[u8], content_type: &[u8]) -> Option<Disposition> {
        let mut headers = HeaderMap::new();
        let value = |bytes| HeaderValue::from_bytes(bytes).unwrap();
        headers.insert(header::CONTENT_DISPOSITION, value(disposition));
        if !content_type.is_empty() {
            headers.insert(header::CONTENT_TYPE, value(content_type));
        }
        Disposition::of(&headers)
    }

    #[test]
    fn a_part_with_a_file_name_in_any_encoding_is_a_file() {
        let cases: [&[u8]; 18] = [
            br#"form-data; name="image"; filename="a.jpg""#,
            br#"form-data; filename="a.jpg"; name="image""#,
            b"form-data; name=image; filename=a.jpg",
            b"form-data;name=image;filename=a.jpg",
            br#"FORM-DATA; NAME="image"; FILENAME="a.jpg""#,
            br#"form-data; name = "image" ; filename = "a b.jpg" ;"#,
            b"form-data; name=\"image\"; filename=\"caf\xe9.jpg\"",
            "form-data; name=\"image\"; filename=\"caf\u{e9} \u{732b}.jpg\"".as_bytes(),
            b"form-data; name=\"image\"; filename=\"\x83\x8c\x97\\.jpg\"",
            br#"form-data; name="image"; filename="=?utf-8?B?Y2Fmw6kuanBn?=""#,
            br#"form-data; name="image"; filename*=UTF-8''caf%C3%A9.jpg"#,
            br#"form-data; name="image"; filename="caf_.jpg"; filename*=utf-8''caf%C3%A9.jpg"#,
            br#"form-data; name="image"; filename="a\"; name=\"b.jpg""#,
            br#"form-data; filename="a; name=other; b.jpg"; name="image""#,
            br#"form-data; name="image"; filename="C:\pictures\cat.jpg""#,
            br#"form-data; name="image"; filename="a%22b.jpg""#,
            br#"form-data; name="image"; filename="#,
            br#"form-data; name="image"; filename="never closed.jpg"#,
        ];
        for case in cases {
            let read = of(case, b"").unwrap_or_else(|| panic!("{:?}", case.escape_ascii()));
            assert_eq!(read.name, "image", "{}", case.escape_ascii());
            assert!(read.is_file(), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn an_empty_file_name_names_no_file() {
        for (case, expected) in [
            (&br#"form-data; name="image"; filename="a.jpg""#[..], true),
            (br#"form-data; name="image"; filename*=utf-8''a.jpg"#, true),
            (br#"form-data; name="image"; filename=""; filename*=utf-8''a.jpg"#, true),
            (br#"form-data; name="image"; filename="""#, false),
            (br#"form-data; name="image"; filename="#, false),
            (br#"form-data; name="image"; filename*=utf-8''"#, false),
            (br#"form-data; name="image""#, false),
        ] {
            assert_eq!(of(case, b"").unwrap().names_file(), expected, "{}", case.escape_ascii());
        }
    }

    #[test]
    fn without_a_file_name_the_type_decides() {
        let head = br#"form-data; name="image""#;
        for binary in ["image/png", "IMAGE/JPEG; x=y", "application/octet-stream"] {
            assert!(of(head, binary.as_bytes()).unwrap().is_file(), "{binary}");
        }
        for text in ["", "text/plain", "text/plain; charset=utf-8", "application/json", "images/x"]
        {
            assert!(!of(head, text.as_bytes()).unwrap().is_file(), "{text}");
        }
        // `filename` inside another name or value does not count.
        for none in
            [&br#"form-data; name="filename""#[..], br#"form-data; name="a"; xfilename="b""#]
        {
            assert!(!of(none, b"").unwrap().is_file(), "{}", none.escape_ascii());
        }
    }

    #[test]
    fn a_part_without_a_name_names_no_field() {
        for none in [&b"form-data"[..], br#"form-data; filename="a.jpg""#, b"form-data; name", b""]
        {
            assert_eq!(of(none, b""), None, "{}", none.escape_ascii());
        }
        assert_eq!(of(br#"form-data; name="""#, b"").unwrap().name, "");
    }

    #[test]
    fn charsets_are_read_with_and_without_quotes() {
        for (value, expected) in [
            ("text/plain", None),
            ("text/plain; charset=UTF-8", Some("utf-8")),
            ("text/plain;charset=\"utf-8\"", Some("utf-8")),
            ("text/plain; Charset='utf-8'; x=y", Some("utf-8")),
            ("text/plain; x=\"a; charset=b\"; charset = US-ASCII ", Some("us-ascii")),
            ("text/plain; charset=", None),
        ] {
            assert_eq!(charset(value.as_bytes()).as_deref(), expected, "{value}");
        }
        let head = br#"form-data; name="prompt""#;
        assert!(of(head, b"text/plain; charset=ISO-8859-1").unwrap().foreign_charset);
        assert!(!of(head, b"text/plain; charset=us-ascii").unwrap().foreign_charset);
    }
}
