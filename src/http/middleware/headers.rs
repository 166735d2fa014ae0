//! Sets header fields that every response has. They tell clients not to guess another content type, and caches not to
//! store the response, because responses may be about pictures of people. The pages and their assets say themselves how long
//! they may be stored.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

/// Sets the security header fields in a response. `router` adds this layer with `map_response`.
pub(crate) async fn security_headers(mut response: Response) -> Response {
    let stored = response.extensions_mut().remove::<MayBeStored>();
    let headers = response.headers_mut();
    set_security_headers(headers);
    if let Some(MayBeStored(cache_control)) = stored {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }
    response
}

/// Says how long a response without pictures of people may be stored: a value of `cache-control`. Stored in the response's
/// extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MayBeStored(pub(crate) &'static str);

/// Sets the security header fields. `malformed` calls this directly, because its responses pass through no layer.
pub(crate) fn set_security_headers(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}
