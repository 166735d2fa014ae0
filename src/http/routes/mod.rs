//! One endpoint per file: request and response types, OpenAPI documentation, and handler. `router` lists the
//! endpoints. `compatible` has the routes that speak the APIs of others.

pub(crate) mod bulk;
pub(crate) mod caption;
pub(crate) mod classify;
pub(crate) mod compatible;
pub(crate) mod documents;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod info;
pub(crate) mod mcp;
pub(crate) mod metrics;
pub(crate) mod playground;
pub(crate) mod rank;
pub(crate) mod root;
pub(crate) mod similarity;
pub(crate) mod vqa;

use utoipa_axum::router::OpenApiRouter;

use super::inference::endpoint::Endpoint;
use super::openapi::endpoint::{DocumentedEndpoint, EndpointRules};
use super::state::HttpState;
use super::state::metric_labels::TaskLabel;

/// An endpoint that runs a model. The endpoint's file in this folder creates it, and the router lists it.
pub(crate) struct InferenceEndpoint {
    /// The handlers of the single call and of the batch call.
    pub(crate) router: OpenApiRouter<HttpState>,
    /// The label under which the metrics count the inputs of the endpoint.
    pub(crate) task: TaskLabel,
    /// The part of the OpenAPI description that the attributes of the handlers do not contain.
    pub(crate) documented: DocumentedEndpoint,
}

impl InferenceEndpoint {
    /// Describes the endpoint `E`. `router` has the handlers of the single call and of the batch call.
    pub(crate) fn new<E: Endpoint>(router: OpenApiRouter<HttpState>, rules: EndpointRules) -> Self {
        let task = TaskLabel { models: E::MODELS, name: E::TASK };
        Self { router, task, documented: DocumentedEndpoint::new::<E>(rules) }
    }
}

/// The functions that describe the inference endpoints of a router, one per endpoint.
pub(crate) type EndpointList = &'static [fn() -> InferenceEndpoint];
