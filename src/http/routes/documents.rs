//! `GET /openapi.json`, `/openapi.yaml`, `/openapi-strict.json`, and the way to `/docs` (whose page is mounted in `router`).

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;

use crate::http::error::ApiError;
use crate::http::state::HttpState;

/// This document as JSON
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "show_openapi_json",
    tag = "operations",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/json", body = Object)),
)]
pub(crate) async fn show_openapi_json(
    State(state): State<HttpState>,
) -> Result<Response, ApiError> {
    let json = state.document().json(&state.settings().limits)?;
    Ok(document("application/json", json))
}

/// This document as YAML
#[utoipa::path(
    get,
    path = "/openapi.yaml",
    operation_id = "show_openapi_yaml",
    tag = "operations",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/yaml", body = Object)),
)]
pub(crate) async fn show_openapi_yaml(
    State(state): State<HttpState>,
) -> Result<Response, ApiError> {
    let yaml = state.document().yaml(&state.settings().limits)?;
    Ok(document("application/yaml", yaml))
}

/// This document with every condition between fields, as JSON
#[utoipa::path(
    get,
    path = "/openapi-strict.json",
    operation_id = "show_strict_openapi_json",
    tag = "operations",
    responses((status = 200, description = "The strict OpenAPI document, for validators and fuzzers.", content_type = "application/json", body = Object)),
)]
pub(crate) async fn show_strict_openapi_json(
    State(state): State<HttpState>,
) -> Result<Response, ApiError> {
    let json = state.document().strict(&state.settings().limits)?;
    Ok(document("application/json", json))
}

fn document(content_type: &'static str, document: Bytes) -> Response {
    let content_type = HeaderValue::from_static(content_type);
    ([(header::CONTENT_TYPE, content_type)], document).into_response()
}

/// Leads to the page with the documentation.
pub(crate) async fn lead_to_docs() -> Redirect {
    Redirect::temporary("/docs/")
}
