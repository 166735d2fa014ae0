//! Parses raw bodies: the body is one image, and the query string has the other fields. `extract::read` calls this.

use bytes::Bytes;

use super::form::Form;
use super::request::Request;
use super::scalar::FormValue;
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;

/// Parses a raw body, if there is one, and its query string.
///
/// # Errors
/// `invalid_request`, with the field; `payload_too_large`, `batch_too_large`.
pub(super) fn parse<R: Request>(
    query: Option<&str>,
    image: Option<Bytes>,
    settings: &HttpSettings,
) -> Result<R, ApiError> {
    let mut form = if R::BATCH { Form::of_batch() } else { Form::default() };
    if let Some(image) = image {
        if image.len() > settings.input.max_image_bytes {
            return Err(super::image_file_too_large("image", settings.input.max_image_bytes));
        }
        form.push("image", FormValue::File(image));
    }
    if !is_utf8(query.unwrap_or_default()) {
        return Err(ApiError::invalid("the query string is not valid UTF-8 once percent-decoded"));
    }
    let fields = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    for (count, (name, value)) in fields.enumerate() {
        let max = settings.limits.max_text_parts;
        if count >= max {
            let detail =
                format!("more than {max} fields in the query string (limits.max_text_parts)");
            return Err(ApiError::new(Code::BatchTooLarge, detail));
        }
        form.push(&name, FormValue::Text(value.into_owned()));
    }
    super::json::parse_form(form)
}

/// True if a query string is valid UTF-8 after percent-decoding. `form_urlencoded` itself would silently replace
/// invalid bytes with U+FFFD.
fn is_utf8(query: &str) -> bool {
    let mut rest = query.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.get(..2).and_then(hexadecimal)).flatten();
        decoded.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    std::str::from_utf8(&decoded).is_ok()
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let both = digits.iter().all(u8::is_ascii_hexdigit);
    let text = both.then(|| std::str::from_utf8(digits).ok()).flatten()?;
    u8::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_utf8_is_taken_from_a_query() {
        for good in ["", "prompt=a+b", "prompt=%C3%A9", "prompt=%EF%BF%BD", "prompt=100%", "a=%zz"]
        {
            assert!(is_utf8(good), "{good}");
        }
        for wrong in ["prompt=%FF", "prompt=%C3", "prompt=%C3&x=%A9", "%ED%A0%80=1"] {
            assert!(!is_utf8(wrong), "{wrong}");
        }
    }
}
