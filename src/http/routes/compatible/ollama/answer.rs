//! The answers of `/api/generate` and `/api/chat`: one JSON object, or one object per line while the text is generated.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::brief::Brief;
use super::super::lenient;
use super::super::note;
use super::super::now;
use super::super::sampling::{Sampling, StopField};
use super::super::text_query::TextQuery;
use super::super::text_stream::{TextPart, TextStream};
use crate::http::context::RequestContext;
use crate::http::error::dialect::PlainError;
use crate::http::error::{ApiError, Code};
use crate::http::extract::AdmittedBody;
use crate::http::inference::reply;
use crate::http::inference::sequences::GeneratedText;
use crate::http::inference::start::Start;

/// Options of the generation. Options that BLIP cannot use are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct OllamaOptions {
    /// Above 0, tokens are sampled; 0 by default.
    #[serde(default)]
    temperature: Option<f64>,
    /// Only for sampling: keeps the k likeliest tokens.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    top_k: Option<i64>,
    /// Only for sampling: keeps the likeliest tokens that together reach this probability.
    #[serde(default)]
    top_p: Option<f64>,
    /// Only for sampling: the same seed reproduces the same text.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    seed: Option<i64>,
    /// Maximum number of new tokens; clamped to the limit of the server.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    num_predict: Option<i64>,
    /// String or list of strings that end the text.
    #[serde(default)]
    #[schema(value_type = Value)]
    stop: StopField,
}

impl From<OllamaOptions> for Sampling {
    fn from(options: OllamaOptions) -> Self {
        Self {
            max_tokens: options.num_predict,
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k,
            seed: options.seed,
            stop: options.stop,
            n: None,
        }
    }
}

/// Whether the text stands in `response` (`/api/generate`) or in `message` (`/api/chat`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Generate,
    Chat,
}

/// An answer of `/api/generate` or `/api/chat`, or one line of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaAnswer {
    /// The model as the request names it.
    model: String,
    /// Time of this line.
    created_at: String,
    /// The text, or its next piece; only of `/api/generate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    response: Option<String>,
    /// The text, or its next piece; only of `/api/chat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = OllamaMessage, required = false)]
    message: Option<OllamaMessage>,
    /// False until the last line.
    done: bool,
    #[serde(flatten)]
    end: Option<OllamaEnd>,
}

/// The text of an answer of `/api/chat`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OllamaMessage {
    /// `assistant`.
    role: &'static str,
    /// The text, or its next piece.
    content: String,
}

/// The facts at the end of an answer. All durations are in nanoseconds.
#[derive(Debug, Serialize, ToSchema)]
struct OllamaEnd {
    /// `stop`, `length`, `load` or `unload`.
    done_reason: &'static str,
    /// Time from the arrival of the request.
    total_duration: u64,
    /// Time in the queue.
    load_duration: u64,
    /// Number of tokens that were read. Images do not count.
    prompt_eval_count: usize,
    /// Time in the vision tower.
    prompt_eval_duration: u64,
    /// Number of generated tokens.
    eval_count: usize,
    /// Time in the text tower.
    eval_duration: u64,
}

/// What all lines of an answer have in common.
#[derive(Debug, Clone)]
pub(super) struct LineWriter {
    shape: Shape,
    /// The model as the request names it.
    model: String,
    context: RequestContext,
}

impl LineWriter {
    pub(super) fn new(shape: Shape, model: &str, context: &RequestContext) -> Self {
        Self { shape, model: model.to_owned(), context: context.clone() }
    }

    fn line(&self, text: String, end: Option<OllamaEnd>) -> OllamaAnswer {
        let (response, message) = match self.shape {
            Shape::Generate => (Some(text), None),
            Shape::Chat => (None, Some(OllamaMessage { role: "assistant", content: text })),
        };
        let (model, created_at) = (self.model.clone(), now::rfc3339());
        OllamaAnswer { model, created_at, response, message, done: end.is_some(), end }
    }

    fn end(&self, reason: &'static str, prompt_tokens: usize, tokens: usize) -> OllamaEnd {
        let task = self.context.notes().task.unwrap_or_default();
        OllamaEnd {
            done_reason: reason,
            total_duration: nanoseconds(self.context.elapsed()),
            load_duration: nanoseconds(task.queue),
            prompt_eval_count: prompt_tokens,
            prompt_eval_duration: nanoseconds(task.vision),
            eval_count: tokens,
            eval_duration: nanoseconds(task.text),
        }
    }

    /// Writes the answer to a request without a text and an image, which only asks to load or unload a model.
    ///
    /// # Errors
    /// `overloaded` if there is no memory for it.
    pub(super) fn loaded(&self, keep_alive: &Brief) -> Result<Response, ApiError> {
        let unload = is_zero(keep_alive);
        let end = self.end(if unload { "unload" } else { "load" }, 0, 0);
        reply::json(&self.line(String::new(), Some(end)))
    }
}

/// Answers a query: in one object, or line by line.
///
/// # Errors
/// Any error before the first line.
pub(super) async fn respond(
    start: &Start<'_>,
    body: AdmittedBody,
    query: TextQuery,
    writer: LineWriter,
    streams: bool,
) -> Result<Response, ApiError> {
    let (facts, prepared) = Box::pin(query.prepare(start, body)).await?;
    let note = facts.note;
    if streams {
        let stream = Box::pin(TextStream::begin(prepared, facts, start.context())).await?;
        return Ok(note::with(note, lines(writer, stream)));
    }
    let texts = Box::pin(prepared.answer(&facts)).await?;
    let text = texts.into_iter().next().ok_or_else(ApiError::internal)?;
    let end = writer.end(reason(&text), facts.prompt_tokens, text.token_count);
    Ok(note::with(note, reply::json(&writer.line(text.text, Some(end)))?))
}

/// Writes a stream, one JSON object per line.
fn lines(writer: LineWriter, stream: TextStream) -> Response {
    let lines = stream::unfold((writer, stream), |(writer, mut stream)| async {
        let line = match stream.next().await? {
            TextPart::Piece { text, .. } => json_line(&writer.line(text, None)),
            TextPart::End { generated, .. } => {
                let prompt_tokens = stream.facts().prompt_tokens;
                let end = writer.end(reason(&generated), prompt_tokens, generated.token_count);
                json_line(&writer.line(String::new(), Some(end)))
            }
            TextPart::Failed(error) => json_line(&PlainError::from(&error)),
        };
        Some((Ok::<_, Infallible>(line), (writer, stream)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn json_line<T: Serialize>(line: &T) -> Bytes {
    let mut bytes = serde_json::to_vec(line).expect("lines hold only strings and numbers");
    bytes.push(b'\n');
    bytes.into()
}

fn reason(generated: &GeneratedText) -> &'static str {
    if generated.is_finished { "stop" } else { "length" }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// True if `keep_alive` asks to unload the model: 0, `"0"`, `"0s"`.
fn is_zero(keep_alive: &Brief) -> bool {
    match keep_alive {
        Brief::Number(number) => number.abs() == 0.0,
        Brief::Text(text) => text.trim_end_matches(char::is_alphabetic) == "0",
        Brief::Null | Brief::Flag | Brief::List | Brief::Object(_) => false,
    }
}

/// Rejects requests for an answer that is not plain text.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_format(format: &Brief) -> Result<(), ApiError> {
    if *format == Brief::Null || *format == Brief::Text(String::new()) {
        return Ok(());
    }
    let detail = "BLIP answers in plain text; leave it out";
    Err(ApiError::field(Code::InvalidRequest, "format", detail))
}
