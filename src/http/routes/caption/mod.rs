//! `POST /caption` and `/caption/batch`: caption an image, optionally as the continuation of a prompt.
//!
//! - `plan`: the request, its validated form, and the answer.
//! - `stream`: the answer in pieces. `sse`: the pieces as server-sent events. `events`: their schema.

mod events;
mod plan;
pub(crate) mod sse;
pub(crate) mod stream;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::events::CaptionEvent;
use self::plan::CaptionResponse;
pub(crate) use self::plan::{
    CaptionAnswer, CaptionBatchRequest, CaptionInput, CaptionPlan, CaptionRequest,
};
use super::InferenceEndpoint;
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::inference::reply::{self, BatchResponse};
use crate::http::inference::start;
use crate::http::openapi::InferenceProblems;
use crate::http::openapi::conditions::{explained, generated_or_ranked};
use crate::http::openapi::endpoint::{EndpointRules, FollowUp};
use crate::http::state::HttpState;

/// Describes the endpoint, for the router and the OpenAPI documents.
pub(crate) fn endpoint() -> InferenceEndpoint {
    InferenceEndpoint::new::<CaptionPlan>(
        OpenApiRouter::default()
            .routes(routes!(caption_image))
            .routes(routes!(caption_image_batch)),
        EndpointRules {
            required: &["image"],
            distinct_lists: &["candidates", "explain_layers"],
            conditions: vec![
                generated_or_ranked(&["prompt"], &["verify", "explain"]),
                streaming(),
                explained(),
            ],
            defaults: json!({"stream": false, "tokens": false, "verify": false, "explain": false}),
            image_id: Some("$response.body#/image/id"),
            follow_up: FollowUp { link: "caption", fields: json!({}) },
        },
    )
}

/// Returns the condition that a streamed request generates a single sequence without beam search.
fn streaming() -> Value {
    json!({"anyOf": [
        {"properties": {"stream": {"const": false}}},
        {"properties": {"candidates": false, "verify": {"const": false}, "num_beams": {"const": 1}, "num_return_sequences": {"const": 1}}},
    ]})
}

/// Caption an image
///
/// Generates a caption, or continues the text in `prompt`. With `candidates`, scores each given caption in full and
/// ranks them. With `verify`, a retrieval model checks each caption. Send the image as an image value in JSON, as a file in a
/// multipart form, or as the raw body with the other fields in the query string.
#[utoipa::path(
    post,
    path = "/caption",
    operation_id = "caption_image",
    tag = "inference",
    request_body(content = CaptionRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The captions. With `stream`: `delta` events, then one `done` or `error` event.", content(
            (CaptionResponse = "application/json", example = json!({
                "model": "demo-caption",
                "captions": [{"text": "two cats on a blue background", "token_count": 7, "finish_reason": "stop", "logprob": -0.84, "avg_logprob": -0.12}],
                "image": {"id": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "width": 640, "height": 480, "format": "jpeg"},
            })),
            (CaptionEvent = "text/event-stream"),
        )),
        InferenceProblems,
    ),
)]
pub(crate) async fn caption_image(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let single = start::single::<CaptionPlan>(http, &state, &context).await?;
    let (stream,) = single.extras;
    if stream.unwrap_or(false) {
        let stream = stream::caption_stream(single, context.clone()).await?;
        Ok(sse::response(stream, context))
    } else {
        reply::single_answer(single).await
    }
}

/// Caption many images
///
/// Returns one result per input, in the same order. A field next to `inputs` is the default for every input. In a
/// multipart form, each `image` file is one input.
#[utoipa::path(
    post,
    path = "/caption/batch",
    operation_id = "caption_image_batch",
    tag = "inference",
    request_body(content = CaptionBatchRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "An answer or a problem for each input, in order.", body = BatchResponse<CaptionAnswer>),
        InferenceProblems,
    ),
)]
pub(crate) async fn caption_image_batch(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    reply::answer_batch::<CaptionPlan>(&state, &context, http).await
}
