//! A caption as server-sent events: `delta` while it is generated, then one `done` or `error`.
//!
//! What fails before the first token is a plain refusal. Afterwards a task of its own carries tokens from the
//! worker to the connection; it ends when the client leaves, and with it the work.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::call::{AnswerParts, Call, Endpoint, within};
use super::error::{ApiError, Code};
use super::middleware::context::RequestContext;
use super::middleware::server_timing::milliseconds;
use super::routes::caption::{CaptionAnswer, CaptionPlan};
use super::text;
use crate::engine::{Reply, TokenStream};
use crate::task::{ImageInfo, TaskTiming, TokenIds, TokenLogprob};

/// Proxies close connections on which nothing moves; most wait 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events between the task and the connection; tokens are far slower than a connection.
const BUFFERED_EVENTS: usize = 8;

/// A piece of text, with the tokens that settled it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Delta {
    /// All of them joined are the caption's text.
    #[schema(example = " cats")]
    text: String,
    /// The new tokens; none where a held-back word is given out at the end.
    tokens: Vec<DeltaToken>,
}

/// A generated token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeltaToken {
    /// Its id.
    #[schema(example = 8870)]
    id: u32,
    /// Its natural log-probability.
    #[schema(example = -0.12, maximum = 0)]
    logprob: f32,
}

/// The last event of a stream that went well.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Done {
    /// The model that answered.
    model: String,
    #[serde(flatten)]
    answer: CaptionAnswer,
    /// Where the time went.
    timing: Timing,
}

/// Where the time went, in milliseconds; the longest of each stage.
#[expect(clippy::struct_field_names, reason = "on the wire a unit stands in the name")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Timing {
    /// Fetching the image, where it came by URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, required = false)]
    fetch_ms: Option<f64>,
    /// Decoding and resizing the image.
    decode_ms: f64,
    /// Waiting for the worker.
    queue_ms: f64,
    /// The vision tower.
    vision_ms: f64,
    /// The text decoder.
    text_ms: f64,
    /// From the request's arrival to this event.
    total_ms: f64,
}

/// A stream that has begun.
struct Caption {
    call: Call<CaptionPlan>,
    plan: CaptionPlan,
    prompt: Option<TokenIds>,
    image: ImageInfo,
    context: RequestContext,
    reply: Reply,
    tokens: TokenStream,
}

/// Starts a stream, once the first token is there.
///
/// # Errors
/// Whatever fails before the first token.
pub(crate) async fn caption_stream(
    mut call: Call<CaptionPlan>,
    context: RequestContext,
) -> Result<Response, ApiError> {
    let (engine, deadline) = (call.engine.clone(), call.admission.deadline());
    let began = within(&engine, deadline, begin(&mut call)).await;
    let (plan, prompt, image, reply, tokens, first) = match began {
        Ok(began) => began,
        Err(error) => {
            call.count(Some(&error));
            return Err(error);
        }
    };
    context.note(|notes| notes.streaming = true);
    let (events, receiver) = mpsc::channel(BUFFERED_EVENTS);
    let caption = Caption { call, plan, prompt, image, context, reply, tokens };
    tokio::spawn(async move {
        // A client that went away drops the receiver; dropping the caption then tells the engine.
        tokio::select! {
            () = events.closed() => {}
            () = caption.run(first, &events) => {}
        }
    });
    let events = stream::unfold(receiver, |mut receiver| async {
        let event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

type Began = (CaptionPlan, Option<TokenIds>, ImageInfo, Reply, TokenStream, Option<TokenLogprob>);

/// Everything up to the first token.
async fn begin(call: &mut Call<CaptionPlan>) -> Result<Began, ApiError> {
    let item = call.items.pop().unwrap_or_else(|| Err(ApiError::internal()))?;
    let (plan, prompt, images) = item.into_parts();
    let images = call.images(images).await?;
    let image = images.first().ok_or_else(ApiError::internal)?.info;
    let task = plan.task(images, &prompt);
    let (mut reply, mut tokens) = call.admission.submit_streaming(call.model.info.id, task);
    let first = tokens.next().await;
    if first.is_none() {
        // The sequence ended without a token: it failed.
        (&mut reply).await?;
        tracing::error!("a stream ended before its first token, and without an error");
        return Err(ApiError::internal());
    }
    Ok((plan, prompt, image, reply, tokens, first))
}

impl Caption {
    /// Sends every event, the last one included.
    async fn run(mut self, first: Option<TokenLogprob>, events: &mpsc::Sender<Event>) {
        let deadline = self.call.admission.deadline();
        let generate = AssertUnwindSafe(self.generate(first, events)).catch_unwind();
        let outcome = match tokio::time::timeout_at(deadline.into(), generate).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                tracing::error!("a stream panicked");
                Err(ApiError::internal())
            }
            Err(_) => Err(ApiError::deadline_exceeded()),
        };
        self.call.count(outcome.as_ref().err());
        let last = match outcome {
            Ok(done) => event("done", &done),
            Err(error) => {
                self.context.note(|notes| notes.stream_error = Some(error.code));
                event("error", &error.to_problem(&self.context.id))
            }
        };
        // A failed send means that the client has left.
        let _ = events.send(last).await;
    }

    async fn generate(
        &mut self,
        first: Option<TokenLogprob>,
        events: &mpsc::Sender<Event>,
    ) -> Result<Done, ApiError> {
        let mut detokenizer =
            self.call.model.tokenizer.detokenizer(text::prompt_ids(self.prompt.as_ref()));
        let mut next = first;
        while let Some(TokenLogprob { id, logprob }) = next {
            if crate::faults::at("http::stream") {
                return Err(ApiError::internal());
            }
            let delta =
                Delta { text: detokenizer.push(id), tokens: vec![DeltaToken { id, logprob }] };
            if events.send(event("delta", &delta)).await.is_err() {
                return Err(ApiError::new(Code::InternalError, "the client has left"));
            }
            next = self.tokens.next().await;
        }
        let answered = (&mut self.reply).await?;
        let rest = detokenizer.finish();
        if !rest.is_empty() {
            let delta = Delta { text: rest, tokens: Vec::new() };
            // When the client has left, the next send finds out as well.
            let _ = events.send(event("delta", &delta)).await;
        }
        self.context.note(|notes| {
            notes.add_task(answered.timing);
            notes.tokens += CaptionPlan::generated_tokens(&answered.output);
        });
        let parts = AnswerParts {
            model: &self.call.model,
            images: vec![self.image],
            tokens: &self.prompt,
            output: answered.output,
        };
        let answer = self.plan.answer(parts)?;
        let model = self.call.model.info.name.clone();
        Ok(Done { model, answer, timing: self.timing(answered.timing) })
    }

    fn timing(&self, task: TaskTiming) -> Timing {
        let notes = self.context.notes();
        Timing {
            fetch_ms: notes.fetch.map(milliseconds),
            decode_ms: milliseconds(notes.decode.unwrap_or_default()),
            queue_ms: milliseconds(task.queue),
            vision_ms: milliseconds(task.vision),
            text_ms: milliseconds(task.text),
            total_ms: milliseconds(self.context.elapsed()),
        }
    }
}

/// An event with its data on one line of JSON.
fn event<T: Serialize>(name: &str, data: &T) -> Event {
    let json = serde_json::to_string(data).expect("events hold only strings and numbers");
    Event::default().event(name).data(json)
}
