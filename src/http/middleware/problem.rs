//! Writes the body of every error response: a problem (`application/problem+json`), or an error in the format of the API
//! to which the path belongs. Error responses that our own code creates have an [`ApiError`] in their extensions. Error
//! responses that the framework creates (for a wrong method or a missing asset) have only a status, from which the error
//! is derived.

use axum::body::Body;
use axum::extract::{Extension, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::context::RequestContext;
use crate::http::error::dialect::Dialect;
use crate::http::error::{self, ApiError, Code};

/// The code of an error response, stored in its extensions for the outer layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorCode(pub(crate) Code);

/// Replaces the body of an error response, and sets `retry-after`.
pub(crate) async fn problem(
    Extension(context): Extension<RequestContext>,
    request: Request,
    next: Next,
) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let mut response = next.run(request).await;
    let status = response.status();
    let refusal = match response.extensions_mut().remove::<ApiError>() {
        Some(refusal) => refusal,
        None if has_its_own_body(&response) || is_answer(&response) => return response,
        None => error::from_status(status),
    };
    let body = dialect.error_body(&refusal, &context.id);
    *response.status_mut() = body.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(body.content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.bytes.len()));
    if let Some(value) = refusal.retry_after_value(&context.id) {
        headers.insert(header::RETRY_AFTER, value);
    }
    response.extensions_mut().insert(ErrorCode(refusal.code));
    *response.body_mut() = Body::from(body.bytes);
    response
}

fn is_answer(response: &Response) -> bool {
    !response.status().is_client_error() && !response.status().is_server_error()
}

/// True for error responses that keep their own body: the 503 of `/health/ready`, and errors of the protocol of `/mcp`.
fn has_its_own_body(response: &Response) -> bool {
    let extensions = response.extensions();
    extensions.get::<KeepBody>().is_some() || extensions.get::<ErrorCode>().is_some()
}

/// Marks a response that has an error status but must keep its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepBody;
