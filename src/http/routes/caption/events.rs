//! The schema of one server-sent event of a caption stream. Appears only in the strict OpenAPI document (see
//! `http::openapi`).

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::openapi::schema::{Object, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::stream::{Delta, DeltaToken, Done, Timing};
use crate::http::error::Problem;

/// The schema of one event. It cannot be derived, because the content of `data` depends on the name in `event`.
pub(super) struct CaptionEvent;

impl PartialSchema for CaptionEvent {
    fn schema() -> RefOr<Schema> {
        let mut event = Object::with_type(SchemaType::Type(Type::Object));
        event.description =
            Some("One event: pieces of text, then either the full answer or a problem.".to_owned());
        event.required = ["event", "data"].map(str::to_owned).into();
        let kinds = json!([
            kind("delta", &Delta::name()),
            kind("done", &Done::name()),
            kind("error", &Problem::name()),
        ]);
        // utoipa's `Object` has no field for `oneOf`. The entries of `extensions` are serialized as fields of the
        // object.
        event.extensions.get_or_insert_default().insert("oneOf".to_owned(), kinds);
        event.into()
    }
}

impl ToSchema for CaptionEvent {
    fn name() -> Cow<'static, str> {
        "CaptionEvent".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        fn add<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
            schemas.push((T::name().into_owned(), T::schema()));
        }
        add::<Delta>(schemas);
        add::<DeltaToken>(schemas);
        add::<Done>(schemas);
        add::<Timing>(schemas);
    }
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
