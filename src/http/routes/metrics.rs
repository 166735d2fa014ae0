//! `GET /metrics`: all metrics in the Prometheus text format.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::http::error::ApiError;
use crate::http::state::HttpState;

/// Metrics in the Prometheus text format
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "show_metrics",
    tag = "operations",
    responses((status = 200, description = "All metrics of this server.", body = String, content_type = "text/plain")),
)]
pub(crate) async fn show_metrics(State(state): State<HttpState>) -> Result<Response, ApiError> {
    if crate::faults::at("http::metrics") {
        return Err(ApiError::internal());
    }
    let text = state.metrics().to_text().map_err(|error| {
        tracing::error!(%error, "cannot encode metrics");
        ApiError::internal()
    })?;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}
