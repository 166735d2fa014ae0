//! `GET /openapi.json`, `/openapi.yaml`, `/openapi-strict.json`, and the redirect from `/` to `/docs/`.
//! The Swagger UI page itself is mounted in `router`.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;

use crate::http::error::ApiError;
use crate::http::state::HttpState;

/// OpenAPI document in JSON, for client generators
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

/// OpenAPI document in YAML, for client generators
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

/// OpenAPI document in JSON with all conditions between fields
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

/// Redirects `/` to the Swagger UI page.
pub(crate) async fn lead_to_docs() -> Redirect {
    Redirect::temporary("/docs/")
}
