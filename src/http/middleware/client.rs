//! Determines the client's address. The access log and the limits per address use it.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::access::client::{ClientAddress, PeerAddress, address};
use crate::http::state::HttpState;

/// Adds the [`ClientAddress`] to the request's extensions.
pub(crate) async fn client(
    State(state): State<HttpState>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip());
    let trusted = &state.settings().trusted_proxies;
    let client = peer.map(|peer| address(peer, request.headers(), trusted));
    request.extensions_mut().insert(ClientAddress(client));
    next.run(request).await
}
