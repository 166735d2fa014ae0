//! `POST /v1/chat/completions`: a caption model describes the last image of the conversation, a VQA model answers the
//! user's last text about it.

mod request;
mod response;

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::{Extension, Request as HttpRequest, State};
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use serde::Serialize;

use self::request::ChatCompletionRequest;
use self::response::{ChatCompletion, ChunkWriter, Usage};

use super::super::note;
use super::super::text_query::AnswerFacts;
use super::super::text_stream::{TextPart, TextStream};
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::error::dialect::OpenAiError;
use crate::http::inference::reply;
use crate::http::inference::start::Start;
use crate::http::openapi::OpenAiErrors;
use crate::http::routes::caption::sse;
use crate::http::state::HttpState;

/// Describe an image, or answer a question about it (OpenAI)
///
/// Instructions in words are not followed: a caption model describes the last image, whatever the text says, and the
/// response header `x-blip-note` says so. A VQA model answers the last text of the user.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "create_chat_completion",
    tag = "openai",
    request_body(content = ChatCompletionRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The completion. With `stream`: chunks as server-sent events, then `[DONE]`.", headers(("x-blip-note" = String, description = "What of the request was not used; absent if all of it was.")), content(
            (ChatCompletion = "application/json"),
            (Value = "text/event-stream"),
        )),
        OpenAiErrors,
    ),
)]
pub(crate) async fn create_chat_completion(
    State(state): State<HttpState>,
    Extension(context): Extension<RequestContext>,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let start = Start::new(&http, &state, &context)?;
    let body = start.read_any_type(http).await?;
    let request: ChatCompletionRequest = start.json(&body).await?;
    let (streams, includes_usage) = (request.stream == Some(true), request.includes_usage());
    let query = request.into_query()?;
    let (facts, prepared) = Box::pin(query.prepare(&start, body)).await?;
    if streams {
        let writer = ChunkWriter::new(&context, &facts.model, includes_usage);
        let stream = Box::pin(TextStream::begin(prepared, facts, &context)).await?;
        let note = stream.facts().note;
        return Ok(note::with(note, ChunkStream::new(writer, stream).into_response()));
    }
    let texts = Box::pin(prepared.answer(&facts)).await?;
    let response = reply::json(&ChatCompletion::new(&context, &facts, texts))?;
    Ok(note::with(facts.note, response))
}

/// The events of a streamed completion.
struct ChunkStream {
    writer: ChunkWriter,
    stream: TextStream,
    facts: AnswerFacts,
    completion_tokens: usize,
    /// Index of the text that is being sent; `None` before the first.
    index: Option<usize>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl ChunkStream {
    fn new(writer: ChunkWriter, stream: TextStream) -> Self {
        let facts = stream.facts().clone();
        let (ready, index) = (VecDeque::new(), None);
        Self { writer, stream, facts, completion_tokens: 0, index, ready, ended: false }
    }

    fn into_response(self) -> Response {
        let events = stream::unfold(self, |mut events| async {
            let event = events.next().await?;
            Some((Ok::<_, Infallible>(event), events))
        });
        sse::respond(events)
    }

    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && !self.ended {
            match self.stream.next().await {
                Some(TextPart::Piece { index, text }) => {
                    self.begin(index);
                    self.ready.push_back(event(&self.writer.piece(index, text)));
                }
                Some(TextPart::End { index, generated }) => {
                    self.begin(index);
                    self.completion_tokens += generated.token_count;
                    self.ready.push_back(event(&self.writer.end(index, &generated)));
                }
                Some(TextPart::Failed(error)) => {
                    self.ready.push_back(event(&OpenAiError::from(&error)));
                    self.ended = true;
                }
                None => {
                    let usage = Usage::of(&self.facts, self.completion_tokens);
                    self.ready.extend(self.writer.usage(usage).map(|chunk| event(&chunk)));
                    self.ready.push_back(Event::default().data("[DONE]"));
                    self.ended = true;
                }
            }
        }
        self.ready.pop_front()
    }

    /// Sends the role before the first piece of a text.
    fn begin(&mut self, index: usize) {
        if self.index != Some(index) {
            self.index = Some(index);
            self.ready.push_back(event(&self.writer.begin(index)));
        }
    }
}

/// Builds an event whose data is one line of JSON.
fn event<T: Serialize>(data: &T) -> Event {
    let json = serde_json::to_string(data).expect("chunks hold only strings and numbers");
    Event::default().data(json)
}
