//! The part of an inference endpoint's OpenAPI description that the attributes of its handlers do not contain: its
//! rules, and the schemas that the rules belong to. Each endpoint's file in `routes` defines the rules; the router
//! collects them.

use std::borrow::Cow;

use serde_json::Value;
use utoipa::ToSchema;

use crate::http::inference::endpoint::{Endpoint, InputOf};

/// An inference endpoint as the documents describe it.
#[derive(Debug)]
pub(crate) struct DocumentedEndpoint {
    /// Name of the schema of a single request.
    pub(super) single: Cow<'static, str>,
    /// Name of the schema of a batch request.
    pub(super) batch: Cow<'static, str>,
    /// Name of the schema of one input of a batch request.
    pub(super) input: Cow<'static, str>,
    pub(super) rules: EndpointRules,
}

impl DocumentedEndpoint {
    /// Creates the description of endpoint `E`, whose requests must obey `rules`.
    pub(crate) fn new<E: Endpoint>(rules: EndpointRules) -> Self {
        let (single, batch, input) =
            (E::Single::name(), E::Batch::name(), <InputOf<E> as ToSchema>::name());
        Self { single, batch, input, rules }
    }
}

/// The rules of one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointRules {
    /// Fields that every single request must have.
    pub(crate) required: &'static [&'static str],
    /// List fields whose items must be distinct.
    pub(crate) distinct_lists: &'static [&'static str],
    /// JSON schemas of the conditions between the fields of a single request; all of them must hold. The module
    /// `conditions` builds those that several endpoints share.
    pub(crate) conditions: Vec<Value>,
    /// A JSON object with the defaults of optional fields. Forms show them as examples. The defaults of generation
    /// parameters are in `plain` and not repeated here.
    pub(crate) defaults: Value,
    /// Runtime expression for an image id that every response contains, such as `$response.body#/image/id`. `links`
    /// uses it to link the response to further calls about this image.
    pub(crate) image_id: Option<&'static str>,
    /// A call of this endpoint that sends an image's id. Responses that contain an image id link to this call.
    pub(crate) follow_up: FollowUp,
}

/// A call that sends the id of an image instead of the image.
#[derive(Debug)]
pub(crate) struct FollowUp {
    /// Name of the link, such as `ask`.
    pub(crate) link: &'static str,
    /// A JSON object with the fields that the call needs in addition to `image`.
    pub(crate) fields: Value,
}
