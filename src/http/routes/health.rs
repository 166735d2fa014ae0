//! `GET /health/live`, `/health/ready`, `/health`: what orchestrators ask. Load is no reason to be unready.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::middleware::problem::OwnBody;
use crate::http::reply;
use crate::http::state::{HttpState, Readiness};

/// Whether requests are served.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// Only `ready` comes with 200.
    #[schema(inline)]
    status: Readiness,
}

/// Is the process alive?
///
/// 200 while the process and its worker give signs of life, also while it loads or drains.
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "check_liveness",
    tag = "operations",
    responses(
        (status = 200, description = "Alive.", body = Health),
        (status = 503, description = "The worker has ended or hangs: restart the process.", body = Health),
    ),
)]
pub(crate) async fn check_liveness(State(state): State<HttpState>) -> Result<Response, ApiError> {
    answer(state.readiness(), !state.worker_is_down())
}

/// Are requests served?
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "check_readiness",
    tag = "operations",
    responses(
        (status = 200, description = "Requests are served.", body = Health),
        (status = 503, description = "Loading, draining, or the worker is down.", body = Health),
    ),
)]
pub(crate) async fn check_readiness(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let status = state.readiness();
    answer(status, status == Readiness::Ready)
}

/// Are requests served?
///
/// The same as `/health/ready`.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "check_health",
    tag = "operations",
    responses(
        (status = 200, description = "Requests are served.", body = Health),
        (status = 503, description = "Loading, draining, or the worker is down.", body = Health),
    ),
)]
pub(crate) async fn check_health(state: State<HttpState>) -> Result<Response, ApiError> {
    check_readiness(state).await
}

fn answer(status: Readiness, good: bool) -> Result<Response, ApiError> {
    let mut response = reply::json(&Health { status })?;
    if !good {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.extensions_mut().insert(OwnBody);
    }
    Ok(response)
}
