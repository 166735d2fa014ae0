//! `GET /`: redirects browsers to the documentation, and tells other clients that the server runs. Clients of Ollama ask
//! this first.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Redirect, Response};

use crate::http::state::HttpState;

/// Answers `GET /` and `HEAD /`.
pub(crate) async fn show_root(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let wants_page =
        accepted.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"));
    if wants_page && state.settings().docs {
        return Redirect::temporary("/docs/").into_response();
    }
    "blip-server is running".into_response()
}
