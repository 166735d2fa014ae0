//! Conditions between the fields of a request, as far as JSON Schema can express them, such as "exactly one of these
//! fields" or "only together with that field". They appear only in the strict document (see `openapi`).
//!
//! A schema cannot compare two values, such as `min_new_tokens` with `max_new_tokens`, or `num_return_sequences` with
//! `num_beams`. Nor can it express that in a batch an input's own fields override the defaults given outside `inputs`.
//! Only the server reports such conflicts.

use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{Array, Object};
use utoipa::openapi::{RefOr, Schema};

use super::endpoint::DocumentedEndpoint;
use crate::http::extract::generation::GenerationFields;

/// Adds bounds to the list fields of `request`, which is the schema called `name`. If the schema describes a single
/// request, also adds the conditions of its endpoint.
pub(super) fn add(request: &mut Object, name: &str, endpoints: &[DocumentedEndpoint]) {
    let own = endpoints.iter().find(|endpoint| endpoint.single == name || endpoint.input == name);
    for (field, property) in &mut request.properties {
        if let RefOr::T(Schema::Array(list)) = property {
            let distinct =
                own.is_some_and(|endpoint| endpoint.rules.distinct_lists.contains(&&**field));
            bound(list, distinct);
        }
    }
    let Some(rules) = own.filter(|own| own.single == name).map(|own| &own.rules) else { return };
    // utoipa's `Object` has no field for `allOf`. The entries of `extensions` are serialized as fields of the object.
    let conditions = rules.conditions.clone().into();
    request.extensions.get_or_insert_default().insert("allOf".to_owned(), conditions);
}

/// Requires at least one item and, if `distinct`, unique items.
fn bound(list: &mut Array, distinct: bool) {
    list.min_items = list.min_items.or(Some(1));
    list.unique_items = distinct;
}

/// Returns the condition that exactly one of two alternative fields is present, such as `text` and `texts`.
pub(crate) fn exactly_one(singular: &str, plural: &str) -> Value {
    json!({"oneOf": [{"required": [singular]}, {"required": [plural]}]})
}

/// Returns the condition that a request either has no `candidates`, so that texts are generated, or has `candidates` to
/// rank, no generation parameters, none of the fields in `only_generated`, and none of the `flags` set.
pub(crate) fn generated_or_ranked(only_generated: &[&'static str], flags: &[&str]) -> Value {
    let unused = GenerationFields::names().chain(only_generated.iter().copied());
    let absent = unused.map(|name| (name.to_owned(), Value::Bool(false)));
    let unset = flags.iter().map(|name| ((*name).to_owned(), json!({"const": false})));
    let none: Map<String, Value> = absent.chain(unset).collect();
    json!({"oneOf": [
        {"title": "Generated", "properties": {"candidates": false}, "allOf": [strategies()]},
        {"title": "Ranked", "required": ["candidates"], "properties": none},
    ]})
}

/// Returns the condition that a request which wants an explanation asks for one sequence without beam search, and that
/// only such a request chooses layers.
pub(crate) fn explained() -> Value {
    json!({"oneOf": [
        {"properties": {"explain": {"const": false}, "explain_layers": false}},
        {
            "required": ["explain"],
            "properties": {"explain": {"const": true}, "num_beams": {"const": 1}, "num_return_sequences": {"const": 1}},
        },
    ]})
}

/// Returns the condition that the parameters fit one of the three decoding strategies. With a strategy in which a
/// parameter has no effect, the parameter may only have its default value.
fn strategies() -> Value {
    json!({"oneOf": [
        {
            "title": "Greedy search",
            "properties": {
                "do_sample": {"const": false},
                "temperature": {"const": 1}, "top_k": {"const": 50}, "top_p": {"const": 1}, "seed": false,
                "min_p": {"const": 0}, "typical_p": {"const": 1}, "epsilon_cutoff": {"const": 0}, "eta_cutoff": {"const": 0},
                "num_beams": {"const": 1}, "num_return_sequences": {"const": 1},
                "length_penalty": {"const": 1}, "early_stopping": {"const": false}, "renormalize_logits": {"const": false},
            },
        },
        {
            "title": "Beam search",
            "required": ["num_beams"],
            "properties": {
                "do_sample": {"const": false},
                "temperature": {"const": 1}, "top_k": {"const": 50}, "top_p": {"const": 1}, "seed": false,
                "min_p": {"const": 0}, "typical_p": {"const": 1}, "epsilon_cutoff": {"const": 0}, "eta_cutoff": {"const": 0},
                "num_beams": {"minimum": 2},
            },
        },
        {
            "title": "Sampling",
            "required": ["do_sample"],
            "properties": {
                "do_sample": {"const": true},
                "num_beams": {"const": 1},
                "length_penalty": {"const": 1}, "early_stopping": {"const": false}, "renormalize_logits": {"const": false},
            },
        },
    ]})
}
