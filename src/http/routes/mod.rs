//! One endpoint per file: request and response types, OpenAPI documentation, and handler. `router` lists the handlers.

pub(crate) mod caption;
pub(crate) mod documents;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod info;
pub(crate) mod metrics;
pub(crate) mod similarity;
pub(crate) mod vqa;

use utoipa_axum::router::OpenApiRouter;

use super::openapi::endpoint::EndpointRules;
use super::state::HttpState;

/// An endpoint that runs a model: its handlers and its rules. The endpoint's file in this folder creates it, and the
/// router lists it.
pub(crate) struct InferenceEndpoint {
    /// The handlers of the single call and of the batch call.
    pub(crate) router: OpenApiRouter<HttpState>,
    /// What the OpenAPI documents say about the endpoint that the attributes of the handlers do not.
    pub(crate) rules: EndpointRules,
}
