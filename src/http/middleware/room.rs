//! Refuses requests of connections for which the listener has no place, but those of probes and scrapes.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::access::is_open;
use crate::http::error::{ApiError, Code};

/// A place becomes free with the next connection that ends or falls idle.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Marks a request whose connection has a place in the reserve only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRoom;

/// The layer.
pub(crate) async fn room(request: Request, next: Next) -> Response {
    let has_room = request.extensions().get::<NoRoom>().is_none();
    let path = request.uri().path();
    if has_room || is_open(path) || path == "/metrics" {
        return next.run(request).await;
    }
    no_room().into_response()
}

/// Refuses a request whose connection has no place, or had to give it up.
pub(crate) fn no_room() -> ApiError {
    let detail = "every connection that the server allows is in use; send the request again later";
    ApiError::new(Code::Overloaded, detail).retry_after(RETRY_AFTER).closing()
}
