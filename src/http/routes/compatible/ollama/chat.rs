//! `POST /api/chat`: a caption model describes the last image of the conversation, a VQA model answers the user's last
//! text about it.

use std::fmt;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use utoipa::ToSchema;

use super::super::brief::Brief;
use super::super::text_query::{FieldNames, TextQuery};
use super::super::{lenient, model_name};
use super::answer::{LineWriter, OllamaAnswer, OllamaOptions, Shape, check_format, respond};
use super::images::LastImage;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::FromObject;
use crate::http::extract::image_field::ImageField;
use crate::http::inference::start::Start;
use crate::http::openapi::PlainErrors;
use crate::http::state::HttpState;

/// Request for a chat about an image. Fields that BLIP cannot use are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({
    "model": "vqa",
    "messages": [{"role": "user", "content": "how many cats are there?", "images": [crate::http::openapi::EXAMPLE_IMAGE]}],
    "stream": false,
}))]
pub(crate) struct OllamaChatRequest {
    /// Name of a loaded caption or VQA model; `blip-server` for the default.
    #[serde(default)]
    model: String,
    /// The conversation. The last image is described, or the last text of the user is answered.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    messages: Messages,
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
    /// Must be empty: BLIP calls no tools.
    #[serde(default)]
    #[schema(value_type = Vec<Value>)]
    tools: Option<Vec<serde::de::IgnoredAny>>,
    /// Without messages: 0 asks to unload the model, which does nothing.
    #[serde(default)]
    #[schema(value_type = Value)]
    keep_alive: Brief,
}

/// The parts of a conversation that BLIP can use. Everything else is dropped while the body is parsed.
#[derive(Debug, Default)]
struct Messages {
    /// The last image of all messages.
    image: Option<ImageField>,
    /// The last text of the user.
    text: Option<String>,
    /// True if there is any message.
    has_any: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    images: LastImage,
}

struct MessagesVisitor;

impl<'de> Visitor<'de> for MessagesVisitor {
    type Value = Messages;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of messages")
    }

    fn visit_unit<E: Error>(self) -> Result<Messages, E> {
        Ok(Messages::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Messages, A::Error> {
        let mut messages = Messages::default();
        while let Some(FromObject(message)) = items.next_element()? {
            let Message { role, content, images } = message;
            messages.has_any = true;
            messages.image = images.0.or(messages.image);
            let content = content.filter(|content| !content.is_empty());
            if role.is_none_or(|role| role == "user") && content.is_some() {
                messages.text = content;
            }
        }
        Ok(messages)
    }
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MessagesVisitor)
    }
}

/// Describe an image, or answer a question about it, in a chat (Ollama)
///
/// Instructions in words are not followed: a caption model describes the last image, whatever the text says, and the
/// response header `x-blip-note` says so. A VQA model answers the last text of the user.
#[utoipa::path(
    post,
    path = "/api/chat",
    operation_id = "chat_with_ollama_model",
    tag = "ollama",
    request_body(content = OllamaChatRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The text. Unless `stream` is false: one JSON object per line (`application/x-ndjson`).", headers(("x-blip-note" = String, description = "What of the request was not used; absent if all of it was.")), content(
            (OllamaAnswer = "application/json"),
            (String = "application/x-ndjson"),
        )),
        PlainErrors,
    ),
)]
pub(crate) async fn chat_with_ollama_model(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: OllamaChatRequest = start.json(&body).await?;
    let writer = LineWriter::new(Shape::Chat, &request.model, &context);
    let Messages { image, text, has_any } = request.messages;
    if !has_any {
        // An unknown name is an error even if nothing is asked.
        model_name::find(&start.services().models, &request.model)?;
        return writer.loaded(&request.keep_alive);
    }
    check_format(&request.format)?;
    if request.tools.is_some_and(|tools| !tools.is_empty()) {
        let model = model_name::find(&start.services().models, &request.model)?;
        let detail = format!("{} does not support tools", model.info.name);
        return Err(ApiError::new(Code::InvalidRequest, detail));
    }
    let query = TextQuery {
        model: Some(request.model),
        image,
        text,
        sampling: request.options.unwrap_or_default().into(),
        fields: FieldNames { image: "messages[].images", text: "messages", prompt: "prompt" },
        ..TextQuery::default()
    };
    respond(&start, body, query, writer, request.stream != Some(false)).await
}
