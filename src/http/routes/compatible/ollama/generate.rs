//! `POST /api/generate`: a caption model describes the last image, a VQA model answers the prompt about it.

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::brief::Brief;
use super::super::text_query::{FieldNames, TextQuery};
use super::super::{lenient, model_name};
use super::answer::{LineWriter, OllamaAnswer, OllamaOptions, Shape, check_format, respond};
use super::images::LastImage;
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::state::HttpState;

/// Request for a text about an image. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "vqa", "prompt": "how many cats are there?", "images": [crate::http::openapi::EXAMPLE_IMAGE], "stream": false}))]
pub(crate) struct OllamaGenerateRequest {
    /// Name of a loaded caption or VQA model; `blip-server` for the default.
    #[serde(default)]
    model: String,
    /// The question for a VQA model. A caption model ignores it unless `raw` is true.
    #[serde(default)]
    prompt: Option<String>,
    /// Image values; the last one is used.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    images: LastImage,
    /// True: a caption model continues `prompt`.
    #[serde(default)]
    raw: Option<bool>,
    /// Sends one JSON object per line while the text is generated; true by default.
    #[serde(default)]
    stream: Option<bool>,
    /// Options of the generation.
    #[serde(default, deserialize_with = "lenient::object_or_null")]
    options: Option<OllamaOptions>,
    /// Must be absent: BLIP answers in plain text.
    #[serde(default)]
    #[schema(value_type = Value)]
    format: Brief,
    /// Without prompt and images: 0 asks to unload the model, which does nothing.
    #[serde(default)]
    #[schema(value_type = Value)]
    keep_alive: Brief,
}

/// Describe an image, or answer a question about it (Ollama)
///
/// Instructions in words are not followed: a caption model describes the last image, whatever the prompt says, and the
/// response header `x-blip-note` says so.
#[utoipa::path(
    post,
    path = "/api/generate",
    operation_id = "generate_ollama_text",
    tag = "ollama",
    request_body(content = OllamaGenerateRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The text. Unless `stream` is false: one JSON object per line (`application/x-ndjson`).", headers(("x-blip-note" = String, description = "What of the request was not used; absent if all of it was.")), content(
            (OllamaAnswer = "application/json"),
            (String = "application/x-ndjson"),
        )),
        PlainErrors,
    ),
)]
pub(crate) async fn generate_ollama_text(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: OllamaGenerateRequest = start.json(&body).await?;
    let writer = LineWriter::new(Shape::Generate, &request.model, &context);
    let text = request.prompt.filter(|prompt| !prompt.is_empty());
    if text.is_none() && request.images.0.is_none() {
        // An unknown name is an error even if nothing is asked.
        model_name::find(&start.services().models, &request.model)?;
        return writer.loaded(&request.keep_alive);
    }
    check_format(&request.format)?;
    let query = TextQuery {
        model: Some(request.model),
        image: request.images.0,
        prompt: text.clone().filter(|_| request.raw == Some(true)),
        text,
        sampling: request.options.unwrap_or_default().into(),
        fields: FieldNames { image: "images", text: "prompt", prompt: "prompt" },
        ..TextQuery::default()
    };
    respond(&start, body, query, writer, request.stream != Some(false)).await
}
