//! Conditions between the fields of a request, as far as JSON Schema can express them: "exactly one of these", "only
//! together with that". They are part of the strict document.
//!
//! A schema cannot compare two values (`min_new_tokens` with `max_new_tokens`, sequences with beams). In a batch, an
//! input's own fields override the defaults next to `inputs`, which a schema cannot express either. Only the server
//! reports such conflicts.

use serde_json::{Value, json};
use utoipa::openapi::schema::{Array, Object};
use utoipa::openapi::{RefOr, Schema};

/// The generation parameters. None of them is allowed together with `candidates`.
pub(super) const GENERATION: [&str; 13] = [
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "num_return_sequences",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "early_stopping",
    "seed",
];
/// Fields that are lists of distinct items.
const DISTINCT: [&str; 2] = ["candidates", "scores"];

/// Adds the conditions to the schema `request`, which is called `name`.
pub(super) fn add(request: &mut Object, name: &str) {
    let batch = request.properties.contains_key("inputs");
    for (field, property) in &mut request.properties {
        if let RefOr::T(Schema::Array(list)) = property {
            bound(list, !batch && DISTINCT.contains(&field.as_str()));
        }
    }
    let conditions = match name {
        "CaptionRequest" => vec![strategies(), streaming()],
        "VqaRequest" => vec![exactly_one("question", "questions"), generated_or_ranked()],
        "SimilarityRequest" => vec![exactly_one("image", "images"), exactly_one("text", "texts")],
        "EmbeddingsRequest" => vec![embedding_types()],
        _ => return,
    };
    // utoipa's `Object` has no field for `allOf`. The entries of `extensions` are serialized next to its own fields.
    request.extensions.get_or_insert_default().insert("allOf".to_owned(), conditions.into());
}

/// Requires at least one item and, if `distinct`, unique items.
fn bound(list: &mut Array, distinct: bool) {
    list.min_items = Some(1);
    list.unique_items = distinct;
}

fn exactly_one(singular: &str, plural: &str) -> Value {
    json!({"oneOf": [{"required": [singular]}, {"required": [plural]}]})
}

/// The three decoding strategies. A parameter without effect in a strategy may only have its default value there.
fn strategies() -> Value {
    json!({"oneOf": [
        {
            "title": "Greedy search",
            "properties": {
                "do_sample": {"const": false},
                "temperature": {"const": 1}, "top_k": {"const": 50}, "top_p": {"const": 1}, "seed": false,
                "num_beams": {"const": 1}, "num_return_sequences": {"const": 1},
                "length_penalty": {"const": 1}, "early_stopping": {"const": false},
            },
        },
        {
            "title": "Beam search",
            "required": ["num_beams"],
            "properties": {
                "do_sample": {"const": false},
                "temperature": {"const": 1}, "top_k": {"const": 50}, "top_p": {"const": 1}, "seed": false,
                "num_beams": {"minimum": 2},
            },
        },
        {
            "title": "Sampling",
            "required": ["do_sample"],
            "properties": {
                "do_sample": {"const": true},
                "num_beams": {"const": 1},
                "length_penalty": {"const": 1}, "early_stopping": {"const": false},
            },
        },
    ]})
}

/// Only one sequence without beam search can be streamed.
fn streaming() -> Value {
    json!({"anyOf": [
        {"properties": {"stream": {"const": false}}},
        {"properties": {"num_beams": {"const": 1}, "num_return_sequences": {"const": 1}}},
    ]})
}

/// An answer is either generated, or ranked among candidates without generation parameters.
fn generated_or_ranked() -> Value {
    let none: serde_json::Map<String, Value> =
        GENERATION.iter().map(|name| ((*name).to_owned(), Value::Bool(false))).collect();
    json!({"oneOf": [
        {"title": "Generated", "properties": {"candidates": false}, "allOf": [strategies()]},
        {"title": "Ranked", "required": ["candidates"], "properties": none},
    ]})
}

fn embedding_types() -> Value {
    json!({"oneOf": [
        {
            "title": "Image",
            "required": ["image"],
            "properties": {"type": {"const": "image"}, "text": false, "truncate": {"const": false}},
        },
        {
            "title": "Text",
            "required": ["text"],
            "properties": {"type": {"const": "text"}, "image": false},
        },
        {
            "title": "Multimodal",
            "required": ["image", "text", "type"],
            "properties": {"type": {"const": "multimodal"}},
        },
    ]})
}
