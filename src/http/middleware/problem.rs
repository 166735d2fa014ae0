//! Gives every refusal its body: ours, which carry an [`ApiError`], and those that the framework answered by
//! itself (a wrong method, an asset that is not there), which have only a status.

use axum::body::Body;
use axum::extract::{Extension, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::context::RequestContext;
use crate::http::error::{self, ApiError, Code, PROBLEM_JSON};

/// The code of a refusal, left on the response for the layers outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedWith(pub(crate) Code);

/// The layer.
pub(crate) async fn problem(
    Extension(context): Extension<RequestContext>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    let refusal = match response.extensions_mut().remove::<ApiError>() {
        Some(refusal) => refusal,
        None if has_its_own_body(&response) || is_answer(&response) => return response,
        None => error::from_status(status),
    };
    let body = refusal.to_body(&context.id);
    *response.status_mut() = refusal.code.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(value) = refusal.retry_after_value(&context.id) {
        headers.insert(header::RETRY_AFTER, value);
    }
    response.extensions_mut().insert(RefusedWith(refusal.code));
    *response.body_mut() = Body::from(body);
    response
}

fn is_answer(response: &Response) -> bool {
    !response.status().is_client_error() && !response.status().is_server_error()
}

/// `/health/ready` answers 503 with its own body.
fn has_its_own_body(response: &Response) -> bool {
    response.extensions().get::<OwnBody>().is_some()
}

/// Marks a response whose status is an error but whose body is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnBody;
