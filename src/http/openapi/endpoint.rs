//! What one inference endpoint adds to the documents beyond the attributes of its handlers. Each file in `routes` states
//! its own; the router collects them.

use std::borrow::Cow;

use serde_json::Value;

/// The rules of one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointRules {
    /// Schema name of the request of a single call.
    pub(crate) request: Cow<'static, str>,
    /// Fields without which a single request is meaningless.
    pub(crate) required: &'static [&'static str],
    /// List fields whose items must be distinct.
    pub(crate) distinct_lists: &'static [&'static str],
    /// Conditions between the fields of a single request, as JSON schemas that all have to hold. `conditions` has the
    /// common ones.
    pub(crate) conditions: Vec<Value>,
    /// Where the response always has an image's id, as a runtime expression: `$response.body#/image/id`. From there the
    /// documents link to the endpoints that can continue with the image.
    pub(crate) image_id: Option<&'static str>,
    /// How this endpoint continues with an image that an earlier response named.
    pub(crate) follow_up: FollowUp,
}

/// A call about an image that is known by its id.
#[derive(Debug)]
pub(crate) struct FollowUp {
    /// Name of the link: `ask`.
    pub(crate) link: &'static str,
    /// An object of the fields that the call needs next to `image`.
    pub(crate) fields: Value,
}
