//! What the fields of a request mean together, as far as a schema can say it: one of these, only beside that.
//!
//! A schema cannot compare two values (`min_new_tokens` with `max_new_tokens`, sequences with beams), and in a batch
//! an input's own fields replace the defaults beside `inputs`: such conflicts are told by the server alone.

use serde_json::{Value, json};
use utoipa::openapi::schema::{Array, Object};
use utoipa::openapi::{RefOr, Schema};

/// Parameters of generation that candidates take none of.
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
/// Lists whose items differ from one another.
const DISTINCT: [&str; 2] = ["candidates", "scores"];

/// Adds its conditions to the schema of the request of this name.
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
    // Objects have no field for these words; what stands in `extensions` is written beside the others.
    request.extensions.get_or_insert_default().insert("allOf".to_owned(), conditions.into());
}

/// No list that is given is empty.
fn bound(list: &mut Array, distinct: bool) {
    list.min_items = Some(1);
    list.unique_items = distinct;
}

fn exactly_one(singular: &str, plural: &str) -> Value {
    json!({"oneOf": [{"required": [singular]}, {"required": [plural]}]})
}

/// The three ways to generate; a parameter that has no effect in one keeps its default there.
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

/// One sequence without beams can be streamed.
fn streaming() -> Value {
    json!({"anyOf": [
        {"properties": {"stream": {"const": false}}},
        {"properties": {"num_beams": {"const": 1}, "num_return_sequences": {"const": 1}}},
    ]})
}

/// Candidates are ranked, nothing is generated then.
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
