//! Generates a caption piece by piece: deltas while the text is generated, then the whole answer or an error. `sse` sends
//! them as server-sent events; `routes::compatible` translates them into the formats of other APIs.
//!
//! An error before the first token gives a normal error response. Once the first token has arrived, a Tokio task
//! forwards tokens from the engine to the connection. If the client disconnects, the task ends and the work in the
//! engine is cancelled.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::plan::{CaptionAnswer, CaptionPlan, CaptionTokens};
use crate::engine::{Reply, ReservationGuard, TokenStream};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::inference::arity::{ImageArity, OneImage};
use crate::http::inference::call::{Call, InputResult, PreparedInput, SingleCall};
use crate::http::inference::endpoint::{AnswerParts, Endpoint, typed};
use crate::http::inference::{task_spans, text};
use crate::http::middleware::server_timing::milliseconds;
use crate::mutations::{self, Mutation};
use crate::task::{ImageInfo, TaskTiming, TokenLogprob};
use crate::telemetry::trace::OpenSpan;

/// Capacity, in parts, of the channel between the Tokio task and the connection. It can be small, because generation
/// is slower than a connection.
const BUFFERED_PARTS: usize = 8;

/// A piece of generated text with its tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Delta {
    /// The next piece; all pieces joined are the whole caption.
    #[schema(example = " cats")]
    pub(crate) text: String,
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
    pub(crate) answer: CaptionAnswer,
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

/// A caption that is being generated. Its first token has arrived.
pub(crate) struct CaptionStream {
    parts: mpsc::Receiver<CaptionPart>,
    /// The reservation for a large answer, which is kept until the parts are sent.
    _hold: Option<ReservationGuard>,
}

/// A part of a caption stream.
#[derive(Debug)]
pub(crate) enum CaptionPart {
    /// The next piece of the text.
    Delta(Delta),
    /// The whole answer, at the end.
    Done(Box<Done>),
    /// The error that ended the stream.
    Failed(ApiError),
}

impl CaptionStream {
    /// Returns the next part; `None` after the last. If the stream is dropped, the work in the engine is cancelled.
    pub(crate) async fn next(&mut self) -> Option<CaptionPart> {
        self.parts.recv().await
    }
}

/// The state of the task that generates a caption.
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
    /// The span of the task until it is answered.
    span: OpenSpan,
    tokens: TokenStream,
    first: Option<TokenLogprob>,
}

/// Waits for the first token, then starts the stream.
///
/// # Errors
/// `invalid_request` if the caption has several sequences or beams, is verified or not generated; any error that occurs before the first token.
pub(crate) async fn caption_stream<X>(
    single: SingleCall<CaptionPlan, X>,
    context: RequestContext,
) -> Result<CaptionStream, ApiError> {
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
    let (sender, parts) = mpsc::channel(BUFFERED_PARTS);
    let caption = Caption { call, plan, texts, image, context };
    tokio::spawn(async move {
        // When the client disconnects, the receiver is dropped. Dropping the reply then cancels the task in the engine.
        tokio::select! {
            biased;
            () = sender.closed() => {}
            () = caption.run(generation, &sender) => {}
        }
    });
    Ok(CaptionStream { parts, _hold: hold })
}

type Began = (CaptionPlan, CaptionTokens, ImageInfo, Generation);

/// Submits the task and waits for the first token.
async fn begin(call: &Call, input: InputResult<CaptionPlan>) -> Result<Began, ApiError> {
    let PreparedInput { plan, tokens: texts, images, .. } = input?;
    let image = OneImage::wait(images).await?;
    let info = image.info;
    let task = plan.task(&image, &texts).into();
    let span = task_spans::begin(&call.context.spans, &call.model);
    let (mut reply, mut tokens) = call.admission.submit_streaming(call.model.info.id, task);
    let first = tokens.next().await;
    if first.is_none() {
        // The sequence ended without any token, so it has failed. The reply contains the error.
        let answer = (&mut reply).await.map_err(ApiError::from);
        task_spans::end(span, (&call.context.spans, &call.model), &answer);
        answer?;
        tracing::error!("a stream ended without an error before its first token");
        return Err(ApiError::internal());
    }
    Ok((plan, texts, info, Generation { reply, span, tokens, first }))
}

impl Caption {
    /// Sends all parts.
    async fn run(self, generation: Generation, parts: &mpsc::Sender<CaptionPart>) {
        let generate = AssertUnwindSafe(self.generate(generation, parts)).catch_unwind();
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
            Ok(done) => CaptionPart::Done(Box::new(done)),
            Err(error) => {
                self.context.note(|notes| notes.stream_error = Some(error.code));
                CaptionPart::Failed(error)
            }
        };
        // Ignore a failed send: the client has disconnected.
        let _ = parts.send(last).await;
    }

    async fn generate(
        &self,
        Generation { reply, span, mut tokens, first }: Generation,
        parts: &mpsc::Sender<CaptionPart>,
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
            if parts.send(CaptionPart::Delta(delta)).await.is_err() {
                return Err(ApiError::new(Code::InternalError, "the client has disconnected"));
            }
            next = tokens.next().await;
        }
        let answer = reply.await.map_err(ApiError::from);
        task_spans::end(span, (&self.context.spans, &self.call.model), &answer);
        let answered = answer?;
        let timing = answered.run.timing();
        let output = typed::<CaptionPlan>(answered.output)?;
        let rest = detokenizer.finish();
        if !rest.is_empty() {
            let delta = Delta { text: rest, tokens: Vec::new() };
            // Ignore a failed send: if the client has disconnected, the next send fails as well.
            let _ = parts.send(CaptionPart::Delta(delta)).await;
        }
        self.context.note(|notes| {
            notes.add_task(timing);
            notes.tokens += CaptionPlan::generated_tokens(&output);
        });
        let answer_parts = AnswerParts {
            model: &self.call.model,
            images: self.image,
            tokens: &self.texts,
            output,
            second: None,
        };
        let answer = self.plan.answer(answer_parts)?;
        let model = self.call.model.info.name.clone();
        Ok(Done { model, answer, timing: self.timing(timing) })
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
