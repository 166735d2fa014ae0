//! Sets header fields that every response has: clients must not guess another content type, and caches must not store
//! the response, because answers may be about pictures of people.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

/// The layer; `router` applies it as a map over responses.
pub(crate) async fn security_headers(mut response: Response) -> Response {
    set_security_headers(response.headers_mut());
    response
}

/// Sets the same fields for `malformed`, whose answers pass through no layer.
pub(crate) fn set_security_headers(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
