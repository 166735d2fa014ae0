//! The error responses of operations: one per status code, with an example.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

use crate::http::error::dialect::{OpenAiError, PlainError};
use crate::http::error::{ApiError, Code, PROBLEM_JSON, Problem};

/// The error responses of every inference route.
pub(crate) struct InferenceProblems;

/// The error responses of bulk requests as a whole. Their lines have errors of their own.
pub(crate) struct BulkProblems;

/// The error responses of the routes of the OpenAI API.
pub(crate) struct OpenAiErrors;

/// The error responses of the routes of the Ollama and Hugging Face APIs.
pub(crate) struct PlainErrors;

/// The error response of routes that need loaded models.
pub(crate) struct NotReadyProblem;

type Responses = BTreeMap<String, RefOr<Response>>;

impl IntoResponses for InferenceProblems {
    fn responses() -> Responses {
        use Code::{
            BatchTooLarge, DeadlineExceeded, FetchDisabled, ImageNotFound, ImageTooLarge,
            InferenceFailed, InternalError, InvalidRequest, ModelNotFound, NotReady, Overloaded,
            PayloadTooLarge, RequestTimeout, ScoreNotAvailable, ShuttingDown, TaskNotLoaded,
            TextTooLong, UndecodableImage, UnsupportedImageFormat, UnsupportedMediaType,
        };
        problems(&[
            &[InvalidRequest],
            &[TaskNotLoaded, ModelNotFound, ImageNotFound],
            &[RequestTimeout],
            &[PayloadTooLarge],
            &[UnsupportedMediaType, UnsupportedImageFormat],
            &[
                UndecodableImage,
                ImageTooLarge,
                TextTooLong,
                BatchTooLarge,
                ScoreNotAvailable,
                FetchDisabled,
            ],
            &[InferenceFailed, InternalError],
            &[Overloaded, NotReady, ShuttingDown],
            &[DeadlineExceeded],
        ])
    }
}

impl IntoResponses for BulkProblems {
    fn responses() -> Responses {
        use Code::{
            InternalError, InvalidRequest, NotReady, Overloaded, ShuttingDown, UnsupportedMediaType,
        };
        problems(&[
            &[InvalidRequest],
            &[UnsupportedMediaType],
            &[InternalError],
            &[Overloaded, NotReady, ShuttingDown],
        ])
    }
}

impl IntoResponses for NotReadyProblem {
    fn responses() -> Responses {
        problems(&[&[Code::NotReady]])
    }
}

impl IntoResponses for OpenAiErrors {
    fn responses() -> Responses {
        any_error(&OpenAiError::name())
    }
}

impl IntoResponses for PlainErrors {
    fn responses() -> Responses {
        any_error(&PlainError::name())
    }
}

/// Describes all errors of a route by one response, whose body has this schema.
fn any_error(schema: &str) -> Responses {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    let response = ResponseBuilder::new()
        .description("An error. The codes and their meaning are those of this server's own routes.")
        .content("application/json", content)
        .header("www-authenticate", challenge())
        .header("retry-after", seconds())
        .build();
    [("default".to_owned(), response.into())].into()
}

/// Builds one response for each group of codes. All codes of a group have the same status.
pub(super) fn problems(groups: &[&[Code]]) -> Responses {
    groups
        .iter()
        .map(|codes| (codes[0].status().as_u16().to_string(), refusal(codes).into()))
        .collect()
}

/// Builds an error response that lists `codes` and has an example for the first of them.
fn refusal(codes: &[Code]) -> Response {
    let names: Vec<String> = codes.iter().map(|code| format!("`{}`", code.name())).collect();
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(Problem::name())))
        .example(Some(json!(example(codes[0]).to_problem("01hv3k2q9x-1"))))
        .build();
    let response =
        ResponseBuilder::new().description(names.join(", ")).content(PROBLEM_JSON, content);
    if codes[0] == Code::Unauthorized {
        return response.header("www-authenticate", challenge()).build();
    }
    let come_back = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
    if !come_back.contains(&codes[0].status()) {
        return response.build();
    }
    response.header("retry-after", seconds()).build()
}

fn challenge() -> Header {
    HeaderBuilder::new().schema(Some(Object::with_type(Type::String))).build()
}

fn seconds() -> Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1.0))))
        .description(Some("Seconds to wait before retrying."))
        .build()
}

fn example(code: Code) -> ApiError {
    if code == Code::InvalidRequest {
        let detail = "invalid value: integer `9`, expected an integer from 1 to 8";
        return ApiError::field(code, "inputs[2].num_beams", detail);
    }
    ApiError::new(code, code.title())
}
