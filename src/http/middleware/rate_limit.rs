//! Rate limiting: limits the requests of each key owner; if the server has no keys, requests are limited by address.
//!
//! Requests for health and metrics are not counted, because monitoring must still work when the server is flooded. If the
//! server has keys, requests for the public pages are not counted either: nobody needs a key for them, and a limit by
//! address would bind all clients behind one address. They cost little (files of the binary, and documents that are
//! generated once), so the limit on connections bounds a flood of them.

use std::time::Duration;

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::access::bucket::Allowance;
use crate::http::access::client::ClientAddress;
use crate::http::access::{Caller, is_limited, is_public};
use crate::http::context::RequestContext;
use crate::http::state::HttpState;
use crate::platform;

/// Rejects requests above the rate limit, and sets the `RateLimit` fields. `router` adds this layer only if a rate
/// limit is set.
pub(crate) async fn rate_limit(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    Extension(client): Extension<ClientAddress>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let has_keys = state.access().keys().is_some();
    if route.is_some_and(|route| !is_limited(route) || (has_keys && is_public(route))) {
        return next.run(request).await;
    }
    let caller = Caller::of(&context, client);
    let now = platform::now();
    let admitted = state.access().admit(caller, now);
    let allowance = state.access().allowance(caller, now);
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    if let Some(allowance) = allowance {
        put_fields(response.headers_mut(), allowance);
    }
    response
}

/// Sets `RateLimit-Policy` (quota and window) and `RateLimit` (requests left, and time until the quota is full again),
/// as in draft-ietf-httpapi-ratelimit-headers-10. Times are in seconds, rounded up.
fn put_fields(headers: &mut HeaderMap, allowance: Allowance) {
    let Allowance { quota, window, left, full_after } = allowance;
    let seconds = |time: Duration| time.as_millis().div_ceil(1000);
    let policy = format!("\"requests\";q={quota};w={}", seconds(window).max(1));
    let limit = format!("\"requests\";r={left};t={}", seconds(full_after));
    for (name, text) in [("ratelimit-policy", policy), ("ratelimit", limit)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    }
}
