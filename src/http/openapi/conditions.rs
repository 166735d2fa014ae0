//! Conditions between the fields of a request, as far as JSON Schema can express them: "exactly one of these", "only
//! together with that". They are part of the strict document.
//!
//! A schema cannot compare two values (`min_new_tokens` with `max_new_tokens`, sequences with beams). In a batch, an
//! input's own fields override the defaults next to `inputs`, which a schema cannot express either. Only the server
//! reports such conflicts.

use serde_json::{Value, json};
use utoipa::openapi::schema::{Array, Object};
use utoipa::openapi::{RefOr, Schema};

use super::endpoint::EndpointRules;

/// The generation parameters. None of them is allowed together with `candidates`.
pub(crate) const GENERATION: [&str; 13] = [
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

/// Adds bounds to the lists of the schema `request`, which is called `name`, and the conditions of its endpoint if it is
/// the request of a single call.
pub(super) fn add(request: &mut Object, name: &str, rules: &[EndpointRules]) {
    let batch = request.properties.contains_key("inputs");
    for (field, property) in &mut request.properties {
        if let RefOr::T(Schema::Array(list)) = property {
            let distinct = rules.iter().any(|rules| rules.distinct_lists.contains(&&**field));
            bound(list, !batch && distinct);
        }
    }
    let Some(rules) = rules.iter().find(|rules| rules.request == name) else { return };
    // utoipa's `Object` has no field for `allOf`. The entries of `extensions` are serialized next to its own fields.
    let conditions = rules.conditions.clone().into();
    request.extensions.get_or_insert_default().insert("allOf".to_owned(), conditions);
}

/// Requires at least one item and, if `distinct`, unique items.
fn bound(list: &mut Array, distinct: bool) {
    list.min_items = Some(1);
    list.unique_items = distinct;
}

/// Requires one of two spellings of a field, and forbids the other.
pub(crate) fn exactly_one(singular: &str, plural: &str) -> Value {
    json!({"oneOf": [{"required": [singular]}, {"required": [plural]}]})
}

/// The three decoding strategies. A parameter without effect in a strategy may only have its default value there.
pub(crate) fn strategies() -> Value {
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
