//! `GET /openapi.json`, `/openapi.yaml`, and the way to `/docs` (whose page is mounted in `router`).

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};

use crate::http::error::ApiError;
use crate::http::openapi;
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
    crate::http::reply::json(&openapi::document_for(&state.settings().limits))
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
    let yaml = openapi::document_for(&state.settings().limits).to_yaml().map_err(|error| {
        tracing::error!(%error, "the OpenAPI document could not be written");
        ApiError::internal()
    })?;
    let content_type = HeaderValue::from_static("application/yaml");
    Ok(([(header::CONTENT_TYPE, content_type)], yaml).into_response())
}

/// Leads to the page with the documentation.
pub(crate) async fn lead_to_docs() -> Redirect {
    Redirect::temporary("/docs/")
}
