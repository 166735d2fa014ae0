//! `POST /api/embed`, and `/api/embeddings`, its older form: embed texts, and images as an extension.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::embedding_query::{AnyInputs, Embedded, EmbeddingInputs, EmbeddingQuery};
use super::super::{lenient, model_name};
use super::answer::nanoseconds;
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::inference::reply;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::state::HttpState;

/// Request for embeddings. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "retrieval", "input": ["two cats", "a dog"]}))]
pub(crate) struct OllamaEmbedRequest {
    /// Name of a loaded model; `blip-server` for the default.
    #[serde(default)]
    model: String,
    /// A text, an object `{"image": IMAGE_VALUE}`, or a list of up to 2,048 of these.
    #[serde(default)]
    #[schema(value_type = AnyInputs, inline)]
    input: EmbeddingInputs,
    /// Truncates long texts instead of rejecting them; true by default.
    #[serde(default)]
    truncate: Option<bool>,
    /// Number of dimensions; only that of the model is accepted.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    dimensions: Option<i64>,
}

/// One normalised vector per input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaEmbeddings {
    /// The model as the request names it.
    model: String,
    /// The vectors, in the order of the inputs.
    embeddings: Vec<Vec<f32>>,
    /// Time from the arrival of the request, in nanoseconds.
    total_duration: u64,
    /// Time in the queue, in nanoseconds.
    load_duration: u64,
    /// Number of tokens of all texts.
    prompt_eval_count: usize,
}

/// Request of the older form, for one text.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "retrieval", "prompt": "two cats"}))]
pub(crate) struct OllamaEmbeddingRequest {
    /// Name of a loaded model; `blip-server` for the default.
    #[serde(default)]
    model: String,
    /// The text.
    #[serde(default)]
    #[schema(value_type = String)]
    prompt: EmbeddingInputs,
}

/// The vector of a text. It is not normalised.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaEmbedding {
    /// The values.
    embedding: Vec<f32>,
}

/// Embed texts and images (Ollama)
///
/// The vectors of texts and images share one space. As an extension, an input may be an object with an image.
#[utoipa::path(
    post,
    path = "/api/embed",
    operation_id = "embed_with_ollama_model",
    tag = "ollama",
    request_body(content = OllamaEmbedRequest, content_type = "application/json"),
    responses((status = 200, description = "One vector per input, in order.", body = OllamaEmbeddings), PlainErrors),
)]
pub(crate) async fn embed_with_ollama_model(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: OllamaEmbedRequest = start.json(&body).await?;
    let model = request.model.clone();
    let (vectors, prompt_tokens, call) = if request.input.is_empty() {
        model_name::find(&start.services().models, &request.model)?;
        (Vec::new(), 0, None)
    } else {
        let query = EmbeddingQuery {
            model: Some(request.model),
            inputs: request.input,
            field: "input",
            dimensions: request.dimensions,
            truncate: request.truncate != Some(false),
            normalize: Some(true),
        };
        let Embedded { vectors, prompt_tokens, call, .. } = query.embed(&start, body).await?;
        (vectors, prompt_tokens, Some(call))
    };
    let answer = OllamaEmbeddings {
        model,
        embeddings: vectors,
        total_duration: nanoseconds(context.elapsed()),
        load_duration: nanoseconds(context.notes().task.unwrap_or_default().queue),
        prompt_eval_count: prompt_tokens,
    };
    match call {
        Some(call) => call.respond(answer).await,
        None => reply::json(&answer),
    }
}

/// Embed a text (Ollama, older form)
#[utoipa::path(
    post,
    path = "/api/embeddings",
    operation_id = "embed_text_with_ollama_model",
    tag = "ollama",
    request_body(content = OllamaEmbeddingRequest, content_type = "application/json"),
    responses((status = 200, description = "The vector.", body = OllamaEmbedding), PlainErrors),
)]
pub(crate) async fn embed_text_with_ollama_model(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: OllamaEmbeddingRequest = start.json(&body).await?;
    if request.prompt.is_empty() {
        model_name::find(&start.services().models, &request.model)?;
        return reply::json(&OllamaEmbedding { embedding: Vec::new() });
    }
    let query = EmbeddingQuery {
        model: Some(request.model),
        inputs: request.prompt,
        field: "prompt",
        dimensions: None,
        truncate: true,
        normalize: Some(false),
    };
    let Embedded { vectors, call, .. } = query.embed(&start, body).await?;
    let embedding = vectors.into_iter().next().unwrap_or_default();
    call.respond(OllamaEmbedding { embedding }).await
}
