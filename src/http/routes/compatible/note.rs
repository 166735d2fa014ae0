//! The response header `x-blip-note`, which tells what of a request was not used.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

const NOTE: HeaderName = HeaderName::from_static("x-blip-note");

/// Adds the note to a response, if there is one.
pub(super) fn with(note: Option<&'static str>, mut response: Response) -> Response {
    if let Some(note) = note {
        response.headers_mut().insert(NOTE, HeaderValue::from_static(note));
    }
    response
}
