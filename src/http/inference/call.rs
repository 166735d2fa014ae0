//! A prepared call, single or batch: its inputs are submitted to the engine and answered. `start` prepares it; `reply` and
//! `routes::caption::stream` drive it.
//!
//! [`within`] stops the work of a call at its deadline, or when the engine ends. It wraps the preparation of the call, then
//! the work on each input ([`Call::until_deadline`]).

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use serde::Serialize;

use super::arity::ImageArity;
use super::endpoint::{AnswerParts, EachImage, Endpoint, FirstOutput, typed};
use super::image_args::SharedImageFuture;
use super::{reply, task_spans};
use crate::engine::{Admission, EngineHandle, ReservationGuard};
use crate::http::blocking::{Jobs, Stop};
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::extract::request::SingleRequest;
use crate::http::state::models::Model;
use crate::mutations::{self, Mutation};
use crate::platform;
use crate::task::{Task, TaskOutput};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{OpenSpan, ParentSpan};

/// Answers of up to this many bytes are written on the async thread, in at most 0.5 ms, and need no reservation.
const INLINE_ANSWER_BYTES: usize = 64 << 10;

/// Runs one part of a call, such as reading the body or waiting for the worker. Stops it at the deadline, or as soon as
/// the engine can no longer answer any call.
///
/// # Errors
/// Those of `work`; `deadline_exceeded`; `shutting_down` or `not_ready` if the engine ends first.
pub(super) async fn within<T>(
    engine: &EngineHandle,
    deadline: Instant,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let unless_closed = async {
        let waits = !mutations::is_active(Mutation::DrainIgnoresEarlyCalls);
        tokio::select! {
            biased;
            result = work => result,
            error = engine.closed(), if waits => Err(error.into()),
        }
    };
    tokio::time::timeout_at(deadline.into(), unless_closed)
        .await
        .unwrap_or_else(|_| Err(ApiError::deadline_exceeded()))
}

/// A prepared call: its capacity is reserved and its inputs can run.
pub(crate) struct Call {
    pub(crate) model: Model,
    /// The capacity reserved for the whole call.
    pub(crate) admission: Admission,
    pub(super) engine: EngineHandle,
    pub(crate) context: RequestContext,
    pub(super) jobs: Jobs,
    pub(super) metrics: Arc<Metrics>,
    /// True if bytes are reserved for the answer.
    pub(super) is_large: bool,
}

/// One input that is ready to run.
pub(crate) struct PreparedInput<E: Endpoint> {
    pub(crate) plan: E,
    pub(crate) tokens: E::Tokens,
    pub(crate) images: EachImage<E, SharedImageFuture>,
    /// The images for the model of the second task, if that model prepares images differently.
    pub(crate) second_images: Option<EachImage<E, SharedImageFuture>>,
    /// Position of the input in a call with several inputs; `None` if it is the only one.
    pub(crate) index: Option<usize>,
}

/// An input that is ready to run, or the error with which it has already failed.
pub(crate) type InputResult<E> = Result<PreparedInput<E>, ApiError>;

/// A prepared single call.
pub(crate) struct SingleCall<E: Endpoint, X = ExtrasOf<E>> {
    pub(crate) call: Call,
    pub(crate) input: InputResult<E>,
    /// The fields that only the single call has.
    pub(crate) extras: X,
}

/// The fields that only the single call of an endpoint has, as a tuple.
pub(crate) type ExtrasOf<E> = <<E as Endpoint>::Single as SingleRequest>::Extras;

/// A prepared batch call, with the inputs in order.
pub(crate) struct BatchCall<E: Endpoint> {
    pub(crate) call: Call,
    pub(crate) inputs: Vec<InputResult<E>>,
}

impl Call {
    /// Runs one input until its answer is complete, and counts the outcome in the metrics.
    ///
    /// # Errors
    /// Those of this input or of the server, and those of [`within`].
    pub(crate) async fn run<E: Endpoint>(
        &self,
        input: InputResult<E>,
    ) -> Result<E::Answer, ApiError> {
        // Each of several inputs has a span of its own, so that its stages can be told from those of the others.
        let index = input.as_ref().ok().and_then(|input| input.index);
        let span = index.map(|index| {
            let mut span = self.context.spans.open("input");
            span.set("blip.input.index", || index.into());
            span
        });
        let spans = span.as_ref().map_or_else(|| self.context.spans.clone(), OpenSpan::spans);
        let answer = self.until_deadline(self.answer(input, &spans)).await;
        if let Some(span) = span {
            span.end(answer.as_ref().err().map(|error| error.code.name()));
        }
        self.count::<E>(answer.as_ref().err());
        answer
    }

    async fn answer<E: Endpoint>(
        &self,
        input: InputResult<E>,
        spans: &ParentSpan,
    ) -> Result<E::Answer, ApiError> {
        let PreparedInput { plan, tokens, images, second_images, .. } = input?;
        // Wait for all images before the first task: a fetched file holds a permit, and an image that cannot be prepared
        // must cost no work.
        let second_images = async {
            match second_images {
                Some(images) => E::Images::wait(images).await.map(Some),
                None => Ok(None),
            }
        };
        let (images, second_images) = tokio::try_join!(E::Images::wait(images), second_images)?;
        let infos = E::Images::infos(&images);
        let output = self.submit(&self.model, plan.task(&images, &tokens).into(), spans).await?;
        let output = typed::<E>(output)?;
        self.context.note(|notes| notes.tokens += E::generated_tokens(&output));
        let first = FirstOutput {
            model: &self.model,
            images: second_images.as_ref().unwrap_or(&images),
            tokens: &tokens,
            output: &output,
        };
        let second = match plan.second_task(&first)? {
            Some(task) => {
                let model = plan.second_model().unwrap_or(&self.model);
                Some(self.submit(model, task, spans).await?)
            }
            None => None,
        };
        let began = platform::now();
        let parts =
            AnswerParts { model: &self.model, images: infos, tokens: &tokens, output, second };
        let answer = plan.answer(parts);
        self.metrics
            .stage_duration_seconds
            .with_label_values(&["post"])
            .observe(platform::elapsed(began).as_secs_f64());
        answer
    }

    /// Writes the JSON response of a call whose tasks have ended. Rows and images that no task has used are released now. The
    /// bytes of a large response stay reserved until the client has read it.
    ///
    /// # Errors
    /// `overloaded` if there is no memory for the response; those of [`within`].
    pub(crate) async fn respond<T: Serialize + Send + 'static>(
        &self,
        answer: T,
    ) -> Result<Response, ApiError> {
        self.admission.release_work();
        let bytes = self.write(answer).await?;
        let length = bytes.len();
        // What was reserved for the inputs covers the answer, too, because they are no longer in memory.
        let hold = if length > INLINE_ANSWER_BYTES {
            Some(self.admission.hold_bytes(length as u64)?)
        } else {
            self.hold_stream()
        };
        Ok(reply::of_bytes(bytes, hold))
    }

    /// Writes an answer as JSON. A large answer is written by a job.
    ///
    /// # Errors
    /// `overloaded` if there is no memory for it; those of [`within`].
    pub(crate) async fn write<T: Serialize + Send + 'static>(
        &self,
        answer: T,
    ) -> Result<Vec<u8>, ApiError> {
        if let Some(bytes) = reply::to_bytes_within(&answer, INLINE_ANSWER_BYTES)? {
            return Ok(bytes);
        }
        let write = move |_: &Stop| reply::to_bytes(&answer);
        let job = self.jobs.run(&self.admission, "writing an answer", write);
        self.until_deadline(async { job.await? }).await
    }

    /// Returns a guard of the bytes reserved for a large streamed answer, which must live until the client has read it; `None`
    /// for answers of a usual size.
    pub(crate) fn hold_stream(&self) -> Option<ReservationGuard> {
        self.is_large.then(|| self.admission.hold())
    }

    /// Runs a task in the engine, and notes its times.
    async fn submit(
        &self,
        model: &Model,
        task: Task,
        spans: &ParentSpan,
    ) -> Result<TaskOutput, ApiError> {
        let span = task_spans::begin(spans, model);
        let answered = self.admission.submit(model.info.id, task).await.map_err(ApiError::from);
        task_spans::end(span, (spans, model), &answered);
        let answered = answered?;
        self.context.note(|notes| notes.add_task(answered.run.timing()));
        Ok(answered.output)
    }

    /// Runs `work` on an input, and stops it at the deadline of the call.
    ///
    /// # Errors
    /// Those of [`within`].
    pub(crate) async fn until_deadline<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        within(&self.engine, self.admission.deadline(), work).await
    }

    /// Counts an input's outcome in the metric `items_total`.
    pub(crate) fn count<E: Endpoint>(&self, error: Option<&ApiError>) {
        let code = error.map_or("ok", |error| error.code.name());
        let labels = [E::TASK, self.model.info.name.as_str(), code];
        self.metrics.items_total.with_label_values(&labels).inc();
    }
}
