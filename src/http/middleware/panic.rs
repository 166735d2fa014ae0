//! Turns a panic in a handler into a 500 response and counts it, so that only that request fails. The panic hook has
//! already logged the panic.

use std::any::Any;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::ResponseForPanic;

use crate::http::error::ApiError;
use crate::telemetry::metrics::Metrics;

/// A responder that turns a caught panic into an error response.
#[derive(Clone)]
pub(crate) struct PanicResponder(pub(crate) Arc<Metrics>);

impl ResponseForPanic for PanicResponder {
    type ResponseBody = axum::body::Body;

    fn response_for_panic(&mut self, _cause: Box<dyn Any + Send + 'static>) -> Response {
        self.0.panics_total.with_label_values(&["handler"]).inc();
        ApiError::internal().into_response()
    }
}
