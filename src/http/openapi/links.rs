//! OpenAPI links from a response to further calls about the same image. These calls send the image's id instead of the
//! image. This works as long as the image's pixels are cached.

use serde_json::{Value, json};
use utoipa::openapi::link::Link;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{OpenApi, RefOr};

use super::endpoint::{DocumentedEndpoint, EndpointRules};
use super::{operations, request_schema};

/// Adds links to every operation whose response contains an image id. Each link leads to a call that can be made with
/// this id.
pub(super) fn add(document: &mut OpenApi, endpoints: &[DocumentedEndpoint]) {
    let targets: Vec<(String, &EndpointRules)> = operations(document)
        .filter_map(|(_, operation)| {
            let rules = rules_of(operation, endpoints)?;
            Some((operation.operation_id.clone()?, rules))
        })
        .collect();
    for (_, operation) in operations(document) {
        let Some(id) = rules_of(operation, endpoints).and_then(|rules| rules.image_id) else {
            continue;
        };
        let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { continue };
        for (operation_id, target) in &targets {
            let link = Link::builder()
                .operation_id(operation_id)
                .request_body(Some(body(id, &target.follow_up.fields)))
                .description("Use the same image by its id, without sending it again.")
                .build();
            answer.links.insert(target.follow_up.link.to_owned(), link.into());
        }
    }
}

/// Returns the rules of the endpoint if `operation` is the single call of an endpoint.
fn rules_of<'e>(
    operation: &Operation,
    endpoints: &'e [DocumentedEndpoint],
) -> Option<&'e EndpointRules> {
    let name = request_schema(operation)?;
    endpoints.iter().find(|endpoint| endpoint.single == name).map(|endpoint| &endpoint.rules)
}

fn body(id: &str, fields: &Value) -> Value {
    let mut body = json!({"image": id});
    if let (Some(body), Some(fields)) = (body.as_object_mut(), fields.as_object()) {
        body.extend(fields.clone());
    }
    body
}
