//! Headers that every response carries: nothing is sniffed for another type, nothing is stored on the way
//! (answers are about pictures of people).

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

/// The layer, as a map over responses.
pub(crate) async fn security_headers(mut response: Response) -> Response {
    set_security_headers(response.headers_mut());
    response
}

/// The same for an answer that no layer sees.
pub(crate) fn set_security_headers(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
