//! `GET /health/live`, `/health/ready`, `/health`: liveness and readiness probes. An overloaded server stays ready.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::inference::reply;
use crate::http::middleware::problem::KeepBody;
use crate::http::state::{HttpState, Readiness};

/// Answer of the health probes.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// State of the server; `/health/ready` answers 200 only for `ready`.
    #[schema(inline)]
    status: Readiness,
}

/// Liveness probe
///
/// Answers 200 while the process and its worker threads are alive, even during loading and graceful shutdown.
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "check_liveness",
    tag = "operations",
    responses(
        (status = 200, description = "Alive.", body = Health),
        (status = 503, description = "A worker thread has ended or hangs; restart the process.", body = Health),
    ),
)]
pub(crate) async fn check_liveness(State(state): State<HttpState>) -> Result<Response, ApiError> {
    answer(state.readiness(), !state.worker_is_down())
}

/// Readiness probe: can requests be sent?
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "check_readiness",
    tag = "operations",
    responses(
        (status = 200, description = "Ready to serve requests.", body = Health),
        (status = 503, description = "Models are loading, the server is shutting down, or no worker is up.", body = Health),
    ),
)]
pub(crate) async fn check_readiness(State(state): State<HttpState>) -> Result<Response, ApiError> {
    let status = state.readiness();
    answer(status, status == Readiness::Ready)
}

/// Readiness probe
///
/// Same as `/health/ready`.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "check_health",
    tag = "operations",
    responses(
        (status = 200, description = "Ready to serve requests.", body = Health),
        (status = 503, description = "Models are loading, the server is shutting down, or no worker is up.", body = Health),
    ),
)]
pub(crate) async fn check_health(state: State<HttpState>) -> Result<Response, ApiError> {
    check_readiness(state).await
}

fn answer(status: Readiness, good: bool) -> Result<Response, ApiError> {
    let mut response = reply::json(&Health { status })?;
    if !good {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.extensions_mut().insert(KeepBody);
    }
    Ok(response)
}
