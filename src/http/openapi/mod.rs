//! The OpenAPI documents. They are generated from the routes. This folder adds the parts that the attributes of every
//! handler would otherwise repeat: error responses, headers, and the multipart and raw request bodies.
//!
//! The strict document contains every condition that a schema can express. The plain document leaves out the parts that
//! client generators cannot read. `openapi.yaml` in the repository root is the plain document; a test keeps it up to
//! date. `routes::documents` caches the documents in serialized form.

mod access;
pub(crate) mod conditions;
pub(crate) mod endpoint;
mod links;
mod plain;
mod problems;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Info, License, OpenApi, OpenApiBuilder, RefOr, Required, Schema, SchemaFormat,
};
use utoipa::{PartialSchema, ToSchema};

use self::endpoint::DocumentedEndpoint;
pub(crate) use self::problems::{
    BulkProblems, InferenceProblems, NotReadyProblem, OpenAiErrors, PlainErrors,
};
use crate::http::access::is_limited;
use crate::http::error::dialect::{OpenAiError, OpenAiErrorDetail, PlainError};
use crate::http::error::{FieldError, Problem};
use crate::http::settings::Limits;

const DESCRIPTION: &str = "BLIP vision-language models: image captioning, visual question answering, image-text similarity, \
embeddings.\n\nEvery response has the headers `x-request-id` and `server-timing`. Every error is an \
`application/problem+json`; switch on its `code`. Unknown fields are rejected. `null` in JSON, an empty form part \
without a file name and an empty query value mean that a field is absent, so no schema lists `null`. Responses contain \
no `null`.\n\n\
An **image value** is a data URI, base64 (standard or URL-safe alphabet, padding optional, white space ignored), the \
`id` of an image sent before that is still cached, or, \
if fetching is enabled (`fetch_enabled` in `/info`), an `https://` URL. \
The first bytes decide the format: JPEG, PNG, WebP, GIF or BMP.";

/// A JPEG of 64 x 64 pixels in base64. It shows "two cats on a blue background", a scene of the kind that the demo
/// models know, so the examples in the document can be sent unchanged.
pub(crate) const EXAMPLE_IMAGE: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCABAAEADASIAAhEBAxEB/8QAGgABAQADAQEAAAAAAAAAAAAAAAUBAwQCBv/EACUQAAICAgIBBAIDAAAAAAAAAAECAAMEEQUSMSFBUWETIhQVcf/EABoBAAIDAQEAAAAAAAAAAAAAAAAFAQIGBAP/xAAhEQABBAICAgMAAAAAAAAAAAABAAIDEQUhBDESoVHw8f/aAAwDAQACEQMRAD8AmxMqpZgqgkk6AHvMuj1uyWKVZTogj1E0/kLq9rMUateYiJZQkREEJERBC7+FrL8pS3XaoezfQEs5WJh8uRl02KwYaD1MCDo6kjhcmvHyyLiAjjXY+AfuUa8LNpyFrxRVXxxRqxVjsFA7Hff1HoQD7E7MyGbnni5Ycw+NDR+e7/Fo8XHE/jlrhe9hauU4/DweJXoC2Qzgdm8/chSpy61Y9GLg12vYcddFnbsx/wBPzJceYgyO4wfISSd7SrIhgnLWCgNJERGa4UiIghJ7SyxBpLHUfCsRPE6uNFTcjQt6hqy4DA/c8piGsLnC62rxglwANWubz5mJ9HdweJZkOabHVN66gg9TNHNri/1+N/DCFK3ZCyEEb99n52IshzXHmlbFH2fS75cZNFG6R5GvahxERwlqREQQk2Y9n4b0t1vowOpriVc0OBaeipa4tNhXbDiWk3YOdXhmy1brj+wZ2HsfXwfBE5+RysUYi4mIEb9i9jInRSx8nX2ZKiJ+PhIYZRJ5E10NfSmU2UlljLKAtIiI6SxIiIIX/9k=";

/// The operation of another API whose body may be the image itself.
const RAW_IMAGE_OPERATION: &str = "caption_hf_image";

const RAW_DESCRIPTION: &str = "The image file; other fields go in the query string.";

/// An OpenAPI document. Its fields are serialized in the order in which they are declared here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    openapi: Value,
    info: Value,
    servers: Value,
    tags: Value,
    paths: Value,
    components: Value,
}

impl Document {
    fn of(mut document: Value) -> Self {
        document["info"]["license"]["identifier"] = LICENSE.into();
        let mut take = |field: &str| document[field].take();
        Self {
            openapi: take("openapi"),
            info: take("info"),
            // The URL is relative, so it means the server from which the document was read.
            servers: json!([{"url": "/"}]),
            tags: take("tags"),
            paths: take("paths"),
            components: take("components"),
        }
    }

    /// Serializes the document as compact JSON.
    ///
    /// # Errors
    /// Never: the document is made of constants.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Serializes the document as indented JSON.
    ///
    /// # Errors
    /// Never: the document is made of constants.
    pub fn to_pretty_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Serializes the document as YAML.
    ///
    /// # Errors
    /// Never: the document is made of constants.
    pub fn to_yaml(&self) -> Result<String, yaml_serde::Error> {
        let yaml = yaml_serde::to_string(self)?;
        // YAML 1.1, which many parsers still read, takes a plain `n` for `false`. It is a field of chat completions.
        let quoted = yaml.lines().map(|line| match line.strip_suffix("n:") {
            Some(indent) if indent.trim().is_empty() => format!("{indent}\"n\":\n"),
            _ => format!("{line}\n"),
        });
        Ok(quoted.collect())
    }
}

/// The routes and endpoints from which the documents are generated.
pub(crate) struct DocumentedRoutes {
    /// Every route, as the attributes of its handler describe it.
    pub(crate) routes: OpenApi,
    /// The endpoints that run a model.
    pub(crate) endpoints: Vec<DocumentedEndpoint>,
}

impl DocumentedRoutes {
    /// Builds the plain document, which client generators can read, for a server with these limits.
    pub(crate) fn plain(self, limits: &Limits) -> Document {
        let Self { routes, endpoints } = self;
        Document::of(plain::plain(complete(routes, &endpoints, limits), &endpoints))
    }

    /// Builds the strict document, which contains all conditions between fields, for a server with these limits.
    pub(crate) fn strict(self, limits: &Limits) -> Document {
        Document::of(complete(self.routes, &self.endpoints, limits))
    }
}

const LICENSE: &str = "MIT OR Apache-2.0";

fn complete(routes: OpenApi, endpoints: &[DocumentedEndpoint], limits: &Limits) -> Value {
    let mut info = Info::new("blip-server", env!("CARGO_PKG_VERSION"));
    info.description = Some(DESCRIPTION.to_owned());
    info.license = Some(License::new(LICENSE));
    let tag = |name: &str, text: &str| TagBuilder::new().name(name).description(Some(text)).build();
    let tags = [
        tag("inference", "Run the models"),
        tag("bulk", "Many inputs that may wait"),
        tag("openai", "Routes of the OpenAI API, for its client libraries"),
        tag("ollama", "Routes of the Ollama API, for its client libraries"),
        tag(
            "huggingface",
            "Task routes of Hugging Face, for `InferenceClient` and `@huggingface/inference`",
        ),
        tag("operations", "Health, server information, metrics, this document"),
    ];
    let mut document = OpenApiBuilder::new().info(info).tags(Some(tags)).build();
    document.merge(routes);
    name_wildcards(&mut document);
    self::access::add(&mut document);
    add_schemas(&mut document, endpoints, limits);
    links::add(&mut document, endpoints);
    let schemas = document
        .components
        .as_ref()
        .map(|components| components.schemas.clone())
        .unwrap_or_default();
    for (path, operation) in operations(&mut document) {
        add_response_headers(operation, path);
        if operation.request_body.is_some() {
            if is_native(operation) {
                add_encodings(operation, &schemas);
            } else if operation.operation_id.as_deref() == Some(RAW_IMAGE_OPERATION)
                && let Some(RefOr::T(body)) = &mut operation.request_body
            {
                add_raw_bodies(body, "The image file; JSON is needed only for parameters.");
            }
            operation.parameters.get_or_insert_default().push(timeout_parameter().into());
        }
    }
    serde_json::to_value(document).expect("the document is made of constants")
}

/// Writes parameters that span several segments of a path as OpenAPI does: `{model}` instead of axum's `{*model}`.
fn name_wildcards(document: &mut OpenApi) {
    let paths = std::mem::take(&mut document.paths.paths);
    let renamed = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item));
    document.paths.paths = renamed.collect();
}

/// Returns every GET and POST operation of the document, with its path.
fn operations(document: &mut OpenApi) -> impl Iterator<Item = (&str, &mut Operation)> {
    let items = document.paths.paths.iter_mut();
    items.flat_map(|(path, item)| {
        let of_path = [&mut item.get, &mut item.post].into_iter().flatten();
        of_path.map(move |operation| (path.as_str(), operation))
    })
}

/// True if the operation runs a model and belongs to this server's own API.
fn is_native(operation: &Operation) -> bool {
    operation.tags.iter().flatten().any(|tag| tag == "inference")
}

/// Returns the schema name of the operation's JSON request, if it has one.
fn request_schema(operation: &Operation) -> Option<&str> {
    let Some(RefOr::T(body)) = &operation.request_body else { return None };
    let RefOr::T(json) = body.content.get("application/json")? else { return None };
    let Some(RefOr::Ref(reference)) = &json.schema else { return None };
    reference.ref_location.rsplit('/').next()
}

/// Moves the description of an inlined field into the schema of the field. utoipa writes such a field as `allOf` of the
/// field's schema and an object schema that holds only the description. That is wrong: a number, for example, is not an
/// object.
fn merge_descriptions(schema: &mut RefOr<Schema>) {
    let RefOr::T(inner) = schema else { return };
    match inner {
        Schema::Object(object) => object.properties.values_mut().for_each(merge_descriptions),
        Schema::OneOf(one) => one.items.iter_mut().for_each(merge_descriptions),
        Schema::AllOf(all) => {
            all.items.iter_mut().for_each(merge_descriptions);
            if let [inlined, RefOr::T(Schema::Object(described))] = all.items.as_slice()
                && described.properties.is_empty()
            {
                let mut merged = inlined.clone();
                match &mut merged {
                    RefOr::T(Schema::Object(object)) => {
                        object.description.clone_from(&described.description);
                    }
                    RefOr::T(Schema::OneOf(one)) => {
                        one.description.clone_from(&described.description);
                    }
                    RefOr::T(Schema::Array(list)) => {
                        list.description.clone_from(&described.description);
                    }
                    RefOr::T(_) | RefOr::Ref(_) => return,
                }
                *schema = merged;
            }
        }
        Schema::Array(_) | Schema::AnyOf(_) | _ => {}
    }
}

/// Adds the schemas that only error responses refer to, then corrects all schemas: descriptions, the limit
/// on new tokens, required fields and conditions.
fn add_schemas(document: &mut OpenApi, endpoints: &[DocumentedEndpoint], limits: &Limits) {
    let components = document.components.get_or_insert_default();
    let mut add = |name: std::borrow::Cow<'static, str>, schema| {
        components.schemas.insert(name.into_owned(), schema);
    };
    add(Problem::name(), Problem::schema());
    add(FieldError::name(), FieldError::schema());
    add(OpenAiError::name(), OpenAiError::schema());
    add(OpenAiErrorDetail::name(), OpenAiErrorDetail::schema());
    add(PlainError::name(), PlainError::schema());
    components.schemas.values_mut().for_each(merge_descriptions);
    let max_new_tokens = limits.max_new_tokens as f64;
    for schema in components.schemas.values_mut() {
        let RefOr::T(Schema::Object(request)) = schema else { continue };
        // Only the schemas of this server's own requests have `additionalProperties`. Other APIs clamp the number.
        if request.additional_properties.is_none() {
            continue;
        }
        for field in ["max_new_tokens", "min_new_tokens"] {
            if let Some(RefOr::T(Schema::Object(tokens))) = request.properties.get_mut(field) {
                tokens.maximum = Some(max_new_tokens.into());
            }
        }
    }
    for endpoint in endpoints {
        let single = components.schemas.get_mut(&*endpoint.single);
        if let Some(RefOr::T(Schema::Object(object))) = single {
            object.required.extend(endpoint.rules.required.iter().map(|field| (*field).to_owned()));
        }
    }
    for (name, schema) in &mut components.schemas {
        // Only request schemas have `additionalProperties`, because they reject unknown fields.
        if let RefOr::T(Schema::Object(object)) = schema
            && object.additional_properties.is_some()
        {
            conditions::add(object, name, endpoints);
        }
    }
}

/// Adds the header fields that `middleware` sets in the responses of this path.
fn add_response_headers(operation: &mut Operation, path: &str) {
    let text = |description: &str| {
        HeaderBuilder::new()
            .schema(Some(Object::with_type(Type::String)))
            .description(Some(description))
            .build()
    };
    for response in operation.responses.responses.values_mut() {
        let RefOr::T(response) = response else { continue };
        response.headers.insert(
            "x-request-id".to_owned(),
            text("Request id: the client's own if valid, else generated.").into(),
        );
        response.headers.insert(
            "server-timing".to_owned(),
            text("Durations of the stages, in milliseconds.").into(),
        );
        response.headers.insert(
            "traceresponse".to_owned(),
            text("Ids of the trace and its span; only if the server records traces.").into(),
        );
        if !is_limited(path) {
            continue;
        }
        response.headers.insert(
            "ratelimit-policy".to_owned(),
            text("Quota `q` in the window of `w` seconds; only with a rate limit.").into(),
        );
        response.headers.insert(
            "ratelimit".to_owned(),
            text("Requests left (`r`), and seconds until the quota is full (`t`); only with a rate limit.").into(),
        );
    }
}

/// Adds multipart and raw request bodies, derived from the JSON request body.
fn add_encodings(operation: &mut Operation, schemas: &BTreeMap<String, RefOr<Schema>>) {
    let Some(name) = request_schema(operation).map(str::to_owned) else { return };
    let Some(RefOr::T(body)) = &mut operation.request_body else { return };
    body.required = Some(Required::True);
    let Some(RefOr::T(Schema::Object(request))) = schemas.get(&name) else { return };

    let form = multipart_schema(request);
    let multipart = ContentBuilder::new().schema(Some(form)).build();
    body.content.insert("multipart/form-data".to_owned(), multipart.into());
    add_raw_bodies(body, RAW_DESCRIPTION);
}

/// Adds request bodies that are the image itself.
fn add_raw_bodies(body: &mut RequestBody, description: &str) {
    for content_type in ["image/*", "application/octet-stream"] {
        let mut file = binary();
        file.description = Some(description.to_owned());
        let raw = ContentBuilder::new().schema(Some(file)).build();
        body.content.insert(content_type.to_owned(), raw.into());
    }
}

/// Builds the schema of the multipart form from the schema of the JSON request. Image fields contain files instead of
/// image values. In a batch, each file is one input.
fn multipart_schema(request: &Object) -> Object {
    let mut form = Object::with_type(SchemaType::Type(Type::Object));
    form.additional_properties.clone_from(&request.additional_properties);
    form.extensions.clone_from(&request.extensions);
    let batch = request.properties.contains_key("inputs");
    // In the form of a batch, the files named `image` are the inputs, and no other field is required.
    form.required = if batch { vec!["image".to_owned()] } else { request.required.clone() };
    for (name, property) in &request.properties {
        match name.as_str() {
            "inputs" => {}
            "image" if !batch => {
                form.properties.insert(name.clone(), binary().into());
            }
            "image" | "images" => {
                let files = ArrayBuilder::new().items(binary()).min_items(Some(1));
                form.properties.insert(name.clone(), files.into());
            }
            _ => {
                form.properties.insert(name.clone(), property.clone());
            }
        }
    }
    form
}

/// Returns the schema of a file. A file of no bytes is no image, so the minimum length is one byte.
fn binary() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .min_length(Some(1))
        .format(Some(SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Binary)))
        .build()
}

fn timeout_parameter() -> Parameter {
    let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1.0));
    ParameterBuilder::new()
        .name("x-request-timeout-ms")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Timeout of the whole request in milliseconds; capped at the server's own deadline.",
        ))
        .schema(Some(schema))
        .build()
}
