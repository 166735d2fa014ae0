//! Counts requests by key, or by address where there are no keys. Health and metrics are not counted: whoever watches the
//! server must see it when it is flooded, too.

use std::time::Instant;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::context::RequestContext;
use crate::http::access::client::{ClientAddress, Network};
use crate::http::access::{Caller, is_open};
use crate::http::state::HttpState;

/// The layer; only there where a limit is set.
pub(crate) async fn rate_limit(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    if route.is_some_and(|route| is_open(route) || route == "/metrics") {
        return next.run(request).await;
    }
    let caller = match context.notes().owner {
        Some(owner) => Caller::Key(owner.scope),
        None => Caller::Address(Network::of(client.0)),
    };
    match state.access().admit(caller, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}
