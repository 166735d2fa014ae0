//! Streams a caption as server-sent events: `delta` events while the text is generated, then one `done` or `error`
//! event. `routes::caption` calls this.
//!
//! An error before the first token gives a normal error response. Once the first token has arrived, a Tokio task
//! forwards tokens from the engine to the connection. If the client disconnects, the task ends and the work in the
//! engine is cancelled.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::plan::{CaptionAnswer, CaptionPlan, CaptionTokens};
use crate::engine::{Reply, TokenStream};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::inference::arity::{ImageArity, OneImage};
use crate::http::inference::call::{Call, InputResult, PreparedInput, SingleCall};
use crate::http::inference::endpoint::{AnswerParts, Endpoint, typed};
use crate::http::inference::text;
use crate::http::middleware::server_timing::milliseconds;
use crate::mutations::{self, Mutation};
use crate::task::{ImageInfo, TaskTiming, TokenLogprob};

/// Interval of keep-alive comments. Proxies close idle connections, most of them after 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Capacity, in events, of the channel between the Tokio task and the connection. It can be small, because generation
/// is slower than a connection.
const BUFFERED_EVENTS: usize = 8;

/// A piece of generated text with its tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Delta {
    /// The next piece; all pieces joined are the whole caption.
    #[schema(example = " cats")]
    text: String,
    /// The new tokens; empty in a last `delta` event that only completes a word.
    tokens: Vec<DeltaToken>,
}

/// One generated token and its probability.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeltaToken {
    /// Token id in the model's vocabulary.
    #[schema(example = 8870)]
    id: u32,
    /// Natural log-probability of the token.
    #[schema(example = -0.12, maximum = 0)]
    logprob: f32,
}

/// Last event of a successful stream.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Done {
    /// Name of the model that answered.
    model: String,
    #[serde(flatten)]
    answer: CaptionAnswer,
    /// Durations of the stages of this request.
    timing: Timing,
}

/// Durations of the stages, in milliseconds. For work that ran in parallel, this is the longest duration.
#[expect(clippy::struct_field_names, reason = "names in the JSON end in the unit")]
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Timing {
    /// Fetching the image; absent unless the image was given by URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f64, required = false)]
    fetch_ms: Option<f64>,
    /// Decoding and resizing the image.
    decode_ms: f64,
    /// Waiting in the queue of the engine.
    queue_ms: f64,
    /// Encoding the image in the vision tower.
    vision_ms: f64,
    /// Generating text in the decoder.
    text_ms: f64,
    /// Time from the arrival of the request to this event.
    total_ms: f64,
}

/// A caption stream whose first token has arrived.
struct Caption {
    call: Call,
    plan: CaptionPlan,
    texts: CaptionTokens,
    image: ImageInfo,
    context: RequestContext,
}

/// The output of the engine for a stream.
struct Generation {
    reply: Reply,
    tokens: TokenStream,
    first: Option<TokenLogprob>,
}

/// Waits for the first token, then starts the stream.
///
/// # Errors
/// `invalid_request` if the caption has several sequences or beams, is verified or not generated; any error that occurs before the first token.
pub(crate) async fn caption_stream(
    single: SingleCall<CaptionPlan>,
    context: RequestContext,
) -> Result<Response, ApiError> {
    let SingleCall { call, input, .. } = single;
    if input.as_ref().is_ok_and(|input| input.plan.is_verified()) {
        let detail = "a caption can be verified only when it is complete, so it cannot be streamed; leave out verify";
        return Err(ApiError::field(Code::InvalidRequest, "stream", detail));
    }
    if input.as_ref().is_ok_and(|input| !input.plan.streams()) {
        let detail = "only one generated sequence without beam search can be streamed; leave out num_beams, num_return_sequences and \
                      candidates";
        return Err(ApiError::field(Code::InvalidRequest, "stream", detail));
    }
    let began = call.until_deadline(begin(&call, input)).await;
    let (plan, texts, image, generation) =
        began.inspect_err(|error| call.count::<CaptionPlan>(Some(error)))?;
    context.note(|notes| notes.streaming = true);
    let hold = call.hold_stream();
    let (events, receiver) = mpsc::channel(BUFFERED_EVENTS);
    let caption = Caption { call, plan, texts, image, context };
    tokio::spawn(async move {
        // When the client disconnects, the receiver is dropped. Dropping the reply then cancels the task in the engine.
        tokio::select! {
            biased;
            () = events.closed() => {}
            () = caption.run(generation, &events) => {}
        }
    });
    // The events keep the reservation for a large answer until they are sent.
    let events = stream::unfold((receiver, hold), |(mut receiver, hold)| async {
        let event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), (receiver, hold)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

type Began = (CaptionPlan, CaptionTokens, ImageInfo, Generation);

/// Submits the task and waits for the first token.
async fn begin(call: &Call, input: InputResult<CaptionPlan>) -> Result<Began, ApiError> {
    let PreparedInput { plan, tokens: texts, images, .. } = input?;
    let image = OneImage::wait(images).await?;
    let info = image.info;
    let task = plan.task(&image, &texts).into();
    let (mut reply, mut tokens) = call.admission.submit_streaming(call.model.info.id, task);
    let first = tokens.next().await;
    if first.is_none() {
        // The sequence ended without any token, so it has failed. The reply contains the error.
        (&mut reply).await?;
        tracing::error!("a stream ended without an error before its first token");
        return Err(ApiError::internal());
    }
    Ok((plan, texts, info, Generation { reply, tokens, first }))
}

impl Caption {
    /// Sends all events, including the final `done` or `error`.
    async fn run(self, generation: Generation, events: &mpsc::Sender<Event>) {
        let generate = AssertUnwindSafe(self.generate(generation, events)).catch_unwind();
        let generate = generate.map(|outcome| {
            outcome.unwrap_or_else(|_| {
                tracing::error!("a caption stream panicked");
                Err(ApiError::internal())
            })
        });
        let outcome = if mutations::is_active(Mutation::StreamsIgnoreTheEnd) {
            generate.await
        } else {
            self.call.until_deadline(generate).await
        };
        self.call.count::<CaptionPlan>(outcome.as_ref().err());
        let last = match outcome {
            Ok(done) => event("done", &done),
            Err(error) => {
                self.context.note(|notes| notes.stream_error = Some(error.code));
                event("error", &error.to_problem(&self.context.id))
            }
        };
        // Ignore a failed send: the client has disconnected.
        let _ = events.send(last).await;
    }

    async fn generate(
        &self,
        Generation { reply, mut tokens, first }: Generation,
        events: &mpsc::Sender<Event>,
    ) -> Result<Done, ApiError> {
        let mut detokenizer =
            self.call.model.tokenizer().detokenizer(text::prompt_ids(self.texts.prompt()));
        let mut next = first;
        while let Some(TokenLogprob { id, logprob }) = next {
            if crate::faults::at("http::stream") {
                return Err(ApiError::internal());
            }
            let delta =
                Delta { text: detokenizer.push(id), tokens: vec![DeltaToken { id, logprob }] };
            if events.send(event("delta", &delta)).await.is_err() {
                return Err(ApiError::new(Code::InternalError, "the client has disconnected"));
            }
            next = tokens.next().await;
        }
        let answered = reply.await?;
        let output = typed::<CaptionPlan>(answered.output)?;
        let rest = detokenizer.finish();
        if !rest.is_empty() {
            let delta = Delta { text: rest, tokens: Vec::new() };
            // Ignore a failed send: if the client has disconnected, the next send fails as well.
            let _ = events.send(event("delta", &delta)).await;
        }
        self.context.note(|notes| {
            notes.add_task(answered.timing);
            notes.tokens += CaptionPlan::generated_tokens(&output);
        });
        let parts = AnswerParts {
            model: &self.call.model,
            images: self.image,
            tokens: &self.texts,
            output,
            second: None,
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

/// Builds an event whose data is one line of JSON.
fn event<T: Serialize>(name: &str, data: &T) -> Event {
    let json = serde_json::to_string(data).expect("events hold only strings and numbers");
    Event::default().event(name).data(json)
}
