//! The rules of one inference endpoint: what the OpenAPI documents say about it that the attributes of its handlers do
//! not. Each endpoint's file in `routes` defines its rules; the router collects them.

use std::borrow::Cow;

use serde_json::Value;

/// The rules of one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointRules {
    /// Name of the schema of a single request.
    pub(crate) request: Cow<'static, str>,
    /// Fields that every single request must have.
    pub(crate) required: &'static [&'static str],
    /// List fields whose items must be distinct.
    pub(crate) distinct_lists: &'static [&'static str],
    /// JSON schemas of the conditions between the fields of a single request; all of them must hold. The module
    /// `conditions` builds those that several endpoints share.
    pub(crate) conditions: Vec<Value>,
    /// Runtime expression for an image id that every response contains, such as `$response.body#/image/id`. `links`
    /// uses it to link the response to further calls about this image.
    pub(crate) image_id: Option<&'static str>,
    /// A call of this endpoint about a known image. Responses that contain an image id link to this call.
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
