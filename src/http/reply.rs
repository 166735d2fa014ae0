//! What handlers end with: the deadline over the whole call, answers as JSON, the two shapes of a call.

use std::future::Future;

use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::call::{self, Call, Endpoint};
use super::error::{ApiError, Problem};
use super::extract::fields::Text;
use super::extract::head;
use super::extract::request::Request;
use super::middleware::context::RequestContext;
use super::state::HttpState;
use crate::task::ImageInfo;

/// An image as answers describe it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ImageAnswer {
    /// `sha256:` and the digest of the file's bytes; send it in the place of the image while it is held.
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    id: String,
    /// Width in pixels after EXIF rotation.
    #[schema(example = 640)]
    width: u32,
    /// Height in pixels after EXIF rotation.
    #[schema(example = 480)]
    height: u32,
    /// The file's format.
    #[schema(example = "jpeg")]
    format: &'static str,
}

impl From<ImageInfo> for ImageAnswer {
    fn from(info: ImageInfo) -> Self {
        let ImageInfo { id, width, height, format } = info;
        Self { id: id.to_string(), width, height, format: format.name() }
    }
}

/// A single answer: the model's name and the answer's own fields.
#[derive(Debug, Serialize)]
pub(crate) struct SingleResponse<A> {
    /// The model that answered.
    pub(crate) model: String,
    /// The answer.
    #[serde(flatten)]
    pub(crate) answer: A,
}

/// The answers of a batch call, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchResponse<A> {
    /// The model that answered.
    model: String,
    /// An answer or a problem for each input.
    results: Vec<BatchResult<A>>,
    /// How many of them are problems.
    #[schema(example = 0, minimum = 0)]
    failed: usize,
}

/// What became of one input.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum BatchResult<A> {
    /// Its answer.
    Answer(A),
    /// Why there is none.
    Failed {
        /// The problem, as a single call would have answered it.
        error: Problem,
    },
}

/// Runs `work` until the call's deadline, which the client may have shortened, or the end of the engine.
///
/// # Errors
/// `work`'s own, `deadline_exceeded`, `shutting_down`, `worker_down`.
pub(crate) async fn within_deadline<F: Future<Output = Result<Response, ApiError>>>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
    work: impl FnOnce(HttpRequest, std::time::Instant) -> F,
) -> Result<Response, ApiError> {
    let deadline = head::deadline(http.headers(), context.arrived, state.settings().deadline)?;
    call::within(&state.services()?.engine, deadline, work(http, deadline)).await
}

/// A call with one input.
///
/// # Errors
/// Whatever refuses it or fails it.
pub(crate) async fn answer_single<E: Endpoint, R: Request>(
    state: &HttpState,
    context: &RequestContext,
    http: HttpRequest,
    split: impl FnOnce(R) -> (Option<Text>, E::Input),
) -> Result<Response, ApiError> {
    within_deadline(http, state, context, |http, deadline| async move {
        let opened = call::open::<R>(http, state, context, E::ROLE, deadline).await?;
        let call: Call<E> = opened
            .prepare(false, |request| {
                let (model, input) = split(request);
                (model, vec![input])
            })
            .await?;
        single_answer(call).await
    })
    .await
}

/// The answer of a call with one input.
///
/// # Errors
/// Whatever fails it.
pub(crate) async fn single_answer<E: Endpoint>(mut call: Call<E>) -> Result<Response, ApiError> {
    let item = call.items.pop().unwrap_or_else(|| Err(ApiError::internal()));
    let answer = call.run(item).await?;
    json(&SingleResponse { model: call.model.info.name.clone(), answer })
}

/// A call with many inputs: 200 once it was admitted, what is wrong with an input stands in its place.
///
/// # Errors
/// Whatever refuses the call as a whole.
pub(crate) async fn answer_batch<E: Endpoint, R: Request>(
    state: &HttpState,
    context: &RequestContext,
    http: HttpRequest,
    split: impl FnOnce(R) -> (Option<Text>, Vec<E::Input>),
) -> Result<Response, ApiError> {
    let deadline = head::deadline(http.headers(), context.arrived, state.settings().deadline)?;
    let prepare = async {
        let opened = call::open::<R>(http, state, context, E::ROLE, deadline).await?;
        opened.prepare::<E>(true, split).await
    };
    let mut call = call::within(&state.services()?.engine, deadline, prepare).await?;
    let items = std::mem::take(&mut call.items);
    let call = &call;
    let answers = join_all(items.into_iter().enumerate().map(|(index, item)| async move {
        call.run(item).await.map_err(|error| match error.errors.first() {
            Some(first) if !first.field.starts_with("inputs[") => {
                error.inside(&format!("inputs[{index}]"))
            }
            Some(_) | None => error,
        })
    }))
    .await;
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    let results = answers.into_iter().map(|answer| match answer {
        Ok(answer) => BatchResult::Answer(answer),
        Err(error) => BatchResult::Failed { error: error.to_problem(&context.id) },
    });
    json(&BatchResponse { model: call.model.info.name.clone(), results: results.collect(), failed })
}

/// An answer as JSON. Written straight from its type: a detour through a generic value would widen `f32`.
///
/// # Errors
/// `internal_error`, which no answer type can cause.
pub(crate) fn json<T: Serialize>(answer: &T) -> Result<Response, ApiError> {
    if crate::faults::at("http::answer") {
        return Err(ApiError::internal());
    }
    let body = serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        ApiError::internal()
    })?;
    let content_type = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}
