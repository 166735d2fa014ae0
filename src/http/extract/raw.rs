//! Raw bodies: one image, the other fields in the query string.

use bytes::Bytes;

use super::form::{Form, Value};
use super::request::Request;
use crate::http::error::{ApiError, Code};
use crate::http::settings::HttpSettings;

/// Reads a raw body and its query string. An empty body is no image.
///
/// # Errors
/// `invalid_request`, naming the field; `payload_too_large`, `batch_too_large`.
pub(super) fn parse<R: Request>(
    query: Option<&str>,
    body: Bytes,
    settings: &HttpSettings,
) -> Result<R, ApiError> {
    let mut form = if R::BATCH { Form::of_batch() } else { Form::default() };
    if body.len() > settings.input.max_image_bytes {
        return Err(super::image_file_too_large("image", settings.input.max_image_bytes));
    }
    if !body.is_empty() {
        form.push("image", Value::File(body));
    }
    let fields = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    for (count, (name, value)) in fields.enumerate() {
        let max = settings.limits.max_text_parts;
        if count >= max {
            let detail = format!("more than {max} fields (limits.max_text_parts)");
            return Err(ApiError::new(Code::BatchTooLarge, detail));
        }
        form.push(&name, Value::Text(value.into_owned()));
    }
    super::json::parse_form(form)
}
