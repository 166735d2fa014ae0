//! Turns the strict document into the plain one, which is shorter and contains nothing on which client generators or
//! editors fail.
//!
//! - Left out: conditions between fields, a second media type for raw bodies, event streams, links, and the bounds of
//!   files and texts.
//! - Shared as components: headers, parameters and error responses.
//! - Merged: the variants of an answer become one object.
//! - Added: examples for form fields, for Swagger UI.
//!
//! Every request and response that is valid under the strict document is also valid under the plain one.

use serde_json::{Map, Value, json};

use super::endpoint::DocumentedEndpoint;
use crate::http::error::PROBLEM_JSON;
use crate::http::extract::generation::GenerationFields;

/// Media types that the plain document leaves out. The description of `image/*` only repeats that of
/// `application/octet-stream`. If a response can be either JSON or a stream, generators can handle neither, so a stream of
/// JSON lines beside JSON is left out as well.
const LEFT_OUT: [&str; 2] = ["image/*", "text/event-stream"];

/// Turns a strict document into the plain one. `endpoints` are the inference endpoints that the document describes.
pub(super) fn plain(mut document: Value, endpoints: &[DocumentedEndpoint]) -> Value {
    let mut shared = SharedComponents::default();
    if let Some(paths) = object(&mut document, "/paths") {
        for operation in
            paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut)
        {
            let defaults = defaults_of(operation, endpoints);
            simplify_operation(operation, defaults, &mut shared);
        }
    }
    if let Some(components) = object(&mut document, "/components") {
        if let Some(schemas) = components.get_mut("schemas").and_then(Value::as_object_mut) {
            merge_variants(schemas);
            schemas.values_mut().for_each(|schema| {
                remove_conditions(schema);
                remove_bounds(schema);
            });
        }
        components.insert("headers".to_owned(), shared.headers.into());
        components.insert("parameters".to_owned(), shared.parameters.into());
        components.insert("responses".to_owned(), shared.responses.into());
    }
    drop_unreferenced(&mut document);
    document
}

/// Removes schemas that nothing refers to: those of events, and the merged variants of answers. Repeats until no such
/// schema is left, because a removed schema may contain the last reference to another.
fn drop_unreferenced(document: &mut Value) {
    loop {
        let text = document.to_string();
        let Some(schemas) = object(document, "/components/schemas") else { return };
        let before = schemas.len();
        schemas.retain(|name, _| text.contains(&format!("\"#/components/schemas/{name}\"")));
        if schemas.len() == before {
            return;
        }
    }
}

/// Components that several operations share, by component name.
#[derive(Default)]
struct SharedComponents {
    headers: Map<String, Value>,
    parameters: Map<String, Value>,
    responses: Map<String, Value>,
}

impl SharedComponents {
    /// Stores a header as a component and returns the reference to it.
    fn header(&mut self, name: &str, header: Value) -> Value {
        share(&mut self.headers, "headers", &pascal(name), header)
    }

    /// Stores a parameter as a component and returns the reference to it.
    fn parameter(&mut self, parameter: Value) -> Value {
        let name = pascal(parameter["name"].as_str().unwrap_or_default());
        share(&mut self.parameters, "parameters", &name, parameter)
    }

    /// Stores an error response as a component named after its first code, and returns the reference to it.
    fn refusal(&mut self, refusal: Value) -> Value {
        let description = refusal["description"].as_str().unwrap_or_default();
        let name = pascal(description.split('`').nth(1).unwrap_or("refusal"));
        share(&mut self.responses, "responses", &name, refusal)
    }
}

/// Stores `value` in the components of this `kind` and returns the reference to it. Different values can have the same
/// name, for example a parameter of the query and one of the path, or two error responses that share their first code.
/// The later one then gets a number appended to its name.
fn share(components: &mut Map<String, Value>, kind: &str, name: &str, value: Value) -> Value {
    let names = (1..).map(|number| match number {
        1 => name.to_owned(),
        _ => format!("{name}{number}"),
    });
    let free_or_same = |name: &String| components.get(name).is_none_or(|known| *known == value);
    let name = names.into_iter().find(free_or_same).unwrap_or_default();
    let reference = json!({"$ref": format!("#/components/{kind}/{name}")});
    components.insert(name, value);
    reference
}

/// Returns the object at this JSON pointer, if there is one.
fn object<'v>(value: &'v mut Value, pointer: &str) -> Option<&'v mut Map<String, Value>> {
    value.pointer_mut(pointer).and_then(Value::as_object_mut)
}

/// Returns the defaults of the fields of an operation's request; `null` if the operation does not belong to an
/// inference endpoint.
fn defaults_of<'e>(operation: &Value, endpoints: &'e [DocumentedEndpoint]) -> &'e Value {
    let reference = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    let name = reference.as_str().and_then(|reference| reference.rsplit('/').next());
    let is_own = |endpoint: &&DocumentedEndpoint| {
        name.is_some_and(|name| endpoint.single == name || endpoint.batch == name)
    };
    endpoints.iter().find(is_own).map_or(&Value::Null, |endpoint| &endpoint.rules.defaults)
}

/// Simplifies one operation, as the module documentation describes. `defaults` holds the defaults of the fields of the
/// operation's request.
fn simplify_operation(operation: &mut Value, defaults: &Value, shared: &mut SharedComponents) {
    for parameter in
        operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten()
    {
        *parameter = shared.parameter(parameter.take());
    }
    if let Some(content) = object(operation, "/requestBody/content") {
        content.retain(|media_type, _| !LEFT_OUT.contains(&media_type.as_str()));
        for (media_type, media) in content {
            let Some(schema) = media.get_mut("schema") else { continue };
            remove_conditions(schema);
            remove_bounds(schema);
            if media_type == "multipart/form-data" {
                simplify_form(schema, defaults);
            }
        }
    }
    let Some(responses) = object(operation, "/responses") else { return };
    for response in responses.values_mut() {
        if let Some(headers) = object(response, "/headers") {
            for (name, header) in headers {
                *header = shared.header(name, header.take());
            }
        }
        let content = object(response, "/content");
        let is_problem = content.is_some_and(|content| {
            let has_json = content.contains_key("application/json");
            content.retain(|media_type, _| {
                let is_stream = has_json && media_type == "application/x-ndjson";
                !is_stream && !LEFT_OUT.contains(&media_type.as_str())
            });
            content.contains_key(PROBLEM_JSON)
        });
        if is_problem {
            *response = shared.refusal(response.take());
        } else if let Some(response) = response.as_object_mut() {
            response.remove("links");
        }
    }
}

/// Removes the conditions of a request schema, which are its `allOf`. An `allOf` in an answer merges schemas and stays.
fn remove_conditions(schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut()
        && schema.contains_key("additionalProperties")
    {
        schema.remove("allOf");
    }
}

/// Merges every answer that combines its own fields with the variants of a `oneOf`. The result is one object, in which
/// the fields of the variants are optional. Generators cannot combine an object with a `oneOf`.
fn merge_variants(schemas: &mut Map<String, Value>) {
    let all = schemas.clone();
    let is_choice =
        |part: &Value| resolved(part, &all).is_some_and(|part| part.get("oneOf").is_some());
    let joins = |schema: &Value| {
        schema["allOf"].as_array().is_some_and(|parts| parts.iter().any(is_choice))
    };
    for schema in schemas.values_mut().filter(|schema| joins(schema)) {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        collect(schema, &all, true, &mut properties, &mut required);
        let joined = json!({"type": "object", "properties": properties, "required": required});
        let description = schema["description"].take();
        *schema = joined;
        schema["description"] = description;
    }
}

/// Follows the `$ref` of a schema. Returns a schema without `$ref` unchanged.
fn resolved<'v>(schema: &'v Value, all: &'v Map<String, Value>) -> Option<&'v Value> {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => all.get(reference.rsplit('/').next()?),
        None => Some(schema),
    }
}

/// Collects the properties of a schema and its parts. `needed` is false inside a `oneOf`, because the required fields
/// of one variant are optional in the merged object.
fn collect(
    schema: &Value,
    all: &Map<String, Value>,
    needed: bool,
    properties: &mut Map<String, Value>,
    required: &mut Vec<Value>,
) {
    let Some(schema) = resolved(schema, all) else { return };
    for (key, needed) in [("allOf", needed), ("oneOf", false)] {
        for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            collect(part, all, needed, properties, required);
        }
    }
    if let Some(own) = schema.get("properties").and_then(Value::as_object) {
        properties.extend(own.clone());
    }
    if needed {
        required.extend(
            schema.get("required").and_then(Value::as_array).into_iter().flatten().cloned(),
        );
    }
}

/// Removes `minLength` from files, `pattern` from texts, `prefixItems` and `uniqueItems` from lists, and all bounds from
/// values of any type. Generated clients
/// check the `minLength` of a file as if the file were text. The pattern only excludes control characters, which nobody
/// sends, and is longer than the rest of the field's schema. Most generators do not know `prefixItems`, and some turn a list
/// of distinct items into a set, which has no order.
fn remove_bounds(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("type").is_some_and(|kind| kind == "string") {
                object.remove("pattern");
            }
            if is_file(object) {
                object.remove("minLength");
            }
            if is_any_value(object) {
                for bound in ["minLength", "minItems", "maxItems"] {
                    object.remove(bound);
                }
            }
            object.remove("prefixItems");
            object.remove("uniqueItems");
            object.values_mut().for_each(remove_bounds);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_bounds),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// True for a schema that allows values of several types and bounds them. Generators take a bounded schema without a type
/// for one of a certain type.
fn is_any_value(schema: &Map<String, Value>) -> bool {
    schema.contains_key("minItems") && !schema.contains_key("type")
}

fn is_file(schema: &Map<String, Value>) -> bool {
    schema.get("format").is_some_and(|format| format == "binary")
}

/// Simplifies a form. All form values except files are text, so a `oneOf` of JSON types becomes a list of accepted
/// strings.
fn simplify_form(form: &mut Value, defaults: &Value) {
    let Some(properties) = object(form, "/properties") else { return };
    // To save space, remove descriptions that occur elsewhere. The fields of a batch are described in the multipart form
    // of the single call, and the generation parameters in the JSON schema.
    let is_batch = properties.get("image").is_some_and(|image| image["type"] == "array");
    for (name, property) in properties {
        let Some(object) = property.as_object_mut() else { continue };
        if is_batch || GenerationFields::names().any(|parameter| parameter == name) {
            object.remove("description");
        }
        let is_choice = object.contains_key("oneOf");
        if is_choice {
            flatten_choice(object);
        }
        let of_files = object.get("items").and_then(Value::as_object).is_some_and(is_file);
        // `images` gets an empty list as its example, which means absent: a form with `image` must not have `images`.
        if !is_file(object) && (!of_files || name != "image") {
            let default = defaults.get(name).cloned().or_else(|| generation_default(name));
            let text =
                |default: Value| if is_choice { json!(default.to_string()) } else { default };
            set_default_example(object, default.map(text));
        }
    }
}

/// Replaces the `oneOf` of a field by the strings that stand for its alternatives in a form. If one of them is any string,
/// every string is accepted.
fn flatten_choice(field: &mut Map<String, Value>) {
    let alternatives = field.remove("oneOf").unwrap_or_default();
    let mut accepted = Some(Vec::new());
    for alternative in alternatives.as_array().into_iter().flatten() {
        let words = match (&alternative["enum"], alternative["type"].as_str()) {
            (Value::Array(words), _) => Some(words.clone()),
            (_, Some("boolean")) => Some(vec![json!("true"), json!("false")]),
            _ => None,
        };
        accepted = accepted.zip(words).map(|(accepted, words)| [accepted, words].concat());
    }
    field.insert("type".to_owned(), "string".into());
    if let Some(accepted) = accepted {
        field.insert("enum".to_owned(), accepted.into());
    }
}

/// Sets the example of a form field to its default, or to an empty value, which means absent. Swagger UI fills its
/// inputs with the examples, so that a form sent unchanged behaves as if the fields were left out.
fn set_default_example(field: &mut Map<String, Value>, default: Option<Value>) {
    let is_list = field.get("type").is_some_and(|kind| kind == "array");
    let nothing = if is_list { json!([]) } else { json!("") };
    field.remove("minLength");
    field.remove("minItems");
    field.insert("example".to_owned(), default.unwrap_or(nothing));
}

/// Returns the value that a generation parameter has if it is absent; `None` for other fields, and for `seed`, which
/// has no default.
fn generation_default(name: &str) -> Option<Value> {
    Some(match name {
        "max_new_tokens" => json!(20),
        "top_k" => json!(50),
        "num_beams" | "num_return_sequences" => json!(1),
        "min_new_tokens" | "no_repeat_ngram_size" => json!(0),
        "temperature" | "top_p" | "typical_p" | "repetition_penalty" | "length_penalty" => {
            json!(1.0)
        }
        "min_p" | "epsilon_cutoff" | "eta_cutoff" => json!(0.0),
        "do_sample" | "renormalize_logits" | "early_stopping" => json!(false),
        _ => return None,
    })
}

/// Converts a name to a component name: `x-request-id` becomes `RequestId`, `invalid_request` becomes `InvalidRequest`.
fn pascal(name: &str) -> String {
    let words = name.trim_start_matches("x-").split(['-', '_']);
    let capitalised = words.map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    capitalised.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_becomes_the_strings_that_stand_for_it() {
        let flatten = |alternative: Value| {
            let mut field = json!({"oneOf": [{"type": "boolean"}, alternative]});
            flatten_choice(field.as_object_mut().unwrap());
            field
        };
        assert_eq!(
            flatten(json!({"type": "string", "enum": ["never"]})),
            json!({"type": "string", "enum": ["true", "false", "never"]})
        );
        assert_eq!(
            flatten(json!({"type": "string", "minLength": 1})),
            json!({"type": "string"}),
            "any name of a model"
        );
    }

    #[test]
    fn equal_refusals_are_shared_and_others_of_the_same_code_get_a_name_of_their_own() {
        let mut shared = SharedComponents::default();
        let refusal = |codes: &str| json!({"description": codes});
        let reference = |name: &str| json!({"$ref": format!("#/components/responses/{name}")});
        let first = shared.refusal(refusal("`not_ready`"));
        assert_eq!(first, reference("NotReady"));
        assert_eq!(shared.refusal(refusal("`not_ready`, `shutting_down`")), reference("NotReady2"));
        assert_eq!(shared.refusal(refusal("`not_ready`")), first);
        assert_eq!(shared.responses.len(), 2);
    }

    #[test]
    fn a_parameter_of_the_path_does_not_replace_one_of_the_query() {
        let mut shared = SharedComponents::default();
        let parameter = |place: &str| json!({"name": "model", "in": place});
        let references = ["query", "path", "query"].map(|place| shared.parameter(parameter(place)));
        let names = references.each_ref().map(|reference| reference["$ref"].as_str().unwrap());
        let [query, path] = ["#/components/parameters/Model", "#/components/parameters/Model2"];
        assert_eq!(names, [query, path, query]);
        assert_eq!(shared.parameters["Model2"], parameter("path"));
    }

    #[test]
    fn names_are_capitalised() {
        assert_eq!(
            [pascal("x-request-id"), pascal("invalid_request")],
            ["RequestId", "InvalidRequest"]
        );
    }
}
