//! Authentication: all requests need a valid API key, except those for health and the API documents. The decision needs
//! only the request head, so the body of a rejected request is not read. The secret is removed from accepted requests.

use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::access::client::{ClientAddress, Network};
use crate::http::access::is_public;
use crate::http::context::{KeyOwner, RequestContext};
use crate::http::state::HttpState;
use crate::platform;

/// Rejects requests without a valid key, and notes the owner of the key. `router` adds this layer only if the server
/// has keys.
pub(crate) async fn authenticate(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    Extension(client): Extension<ClientAddress>,
    mut request: Request,
    next: Next,
) -> Response {
    let access = state.access();
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let (Some(keys), false) = (access.keys(), route.is_some_and(is_public)) else {
        return next.run(request).await;
    };
    let secret = bearer(request.headers());
    match access.authenticate(keys, secret, Network::of(client.0), platform::now()) {
        Ok(key) => {
            let owner = KeyOwner { id: key.shared_id(), scope: key.scope() };
            context.note(|notes| notes.owner = Some(owner));
            request.headers_mut().remove(header::AUTHORIZATION);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Returns the secret in the `Authorization: Bearer` field; `None` if there is no such field, or more than one
/// `Authorization` field.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn a_secret_is_what_follows_the_scheme_of_a_single_header() {
        assert_eq!(secret(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(secret(&["bEARER  abc "]).as_deref(), Some("abc"));
        for none in [&[][..], &["abc"], &["Basic abc"], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(secret(none), None, "{none:?}");
        }
    }
}
