//! `GET /`: the playground for browsers. Other clients are told that the server runs; clients of Ollama ask this first.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};

use super::playground::playground;
use crate::http::state::HttpState;

/// Answers `GET /` and `HEAD /`.
pub(crate) async fn show_root(State(state): State<HttpState>, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let wants_page =
        accepted.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"));
    let settings = state.settings();
    if wants_page && settings.playground {
        return playground(&headers, settings);
    }
    if wants_page && settings.docs {
        // Relative, so that it leads to the page below the path of a proxy too.
        return Redirect::temporary("docs/").into_response();
    }
    let mut response = "blip-server is running".into_response();
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}
