//! Load shedding: rejects requests on connections that have a place in the reserve instead of a regular place (see
//! `connection_table`). Probes and scrapes pass.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::access::is_open;
use crate::http::error::{ApiError, Code};

/// Time after which clients should retry. It is short, because a regular place becomes free as soon as any connection
/// ends, or becomes idle and is closed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Marks a request whose connection has a place in the reserve instead of a regular place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InReserve;

/// Answers a request with 503 if its connection has a place in the reserve instead of a regular place. Probes and
/// scrapes pass.
pub(crate) async fn shed_load(request: Request, next: Next) -> Response {
    let has_place = request.extensions().get::<InReserve>().is_none();
    let path = request.uri().path();
    if has_place || is_open(path) || path == "/metrics" {
        return next.run(request).await;
    }
    connections_full().into_response()
}

/// Returns the error for a request whose connection has no regular place, or had to give up its place.
pub(crate) fn connections_full() -> ApiError {
    let detail = "all connections that the server allows are in use; send the request again later";
    ApiError::new(Code::Overloaded, detail).retry_after(RETRY_AFTER).close_connection()
}
