//! The schema of one server-sent event of a caption stream. It is part of the strict document only.

use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Object, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};

use crate::http::error::Problem;
use crate::http::stream::{Delta, Done};

/// Name of the event schema in the document's components.
pub(super) const NAME: &str = "CaptionEvent";
const EVENT_STREAM: &str = "text/event-stream";

/// The schema of an event: `data` depends on the name in `event`.
pub(super) fn schema() -> RefOr<Schema> {
    let mut event = Object::with_type(SchemaType::Type(Type::Object));
    event.description =
        Some("One event: pieces of text, then either the full answer or a problem.".to_owned());
    event.required = ["event", "data"].map(str::to_owned).into();
    let kinds = json!([
        kind("delta", &Delta::name()),
        kind("done", &Done::name()),
        kind("error", &Problem::name()),
    ]);
    // utoipa's `Object` has no field for `oneOf`. The entries of `extensions` are serialized next to its own fields.
    event.extensions.get_or_insert_default().insert("oneOf".to_owned(), kinds);
    event.into()
}

fn kind(event: &str, schema: &str) -> Value {
    json!({
        "properties": {
            "event": {"const": event},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": format!("#/components/schemas/{schema}")},
            },
        },
    })
}

/// Makes the 200 response of a streaming operation refer to the event schema.
pub(super) fn refer(operation: &mut Operation) {
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    if let Some(RefOr::T(stream)) = answer.content.get_mut(EVENT_STREAM) {
        stream.schema = Some(Ref::from_schema_name(NAME).into());
    }
}
