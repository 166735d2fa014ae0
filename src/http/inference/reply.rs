//! The common parts of inference handlers: the deadline of a whole call, the single and the batch response, and JSON.

use std::future::Future;

use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::call::{self, Call, Endpoint};
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Problem};
use crate::http::extract::fields::Text;
use crate::http::extract::head;
use crate::http::extract::request::Request;
use crate::http::state::HttpState;
use crate::task::ImageInfo;

/// Description of an image in an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ImageAnswer {
    /// `sha256:` and the hex digest of the file; may be sent instead of the image while it is cached.
    #[schema(example = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    id: String,
    /// Width in pixels after EXIF rotation.
    #[schema(example = 640)]
    width: u32,
    /// Height in pixels after EXIF rotation.
    #[schema(example = 480)]
    height: u32,
    /// `jpeg`, `png`, `webp`, `gif` or `bmp`.
    #[schema(example = "jpeg")]
    format: &'static str,
}

impl From<ImageInfo> for ImageAnswer {
    fn from(info: ImageInfo) -> Self {
        let ImageInfo { id, width, height, format } = info;
        Self { id: id.to_string(), width, height, format: format.name() }
    }
}

/// Response of a single call: the model's name and the fields of the answer in one object.
#[derive(Debug, Serialize)]
pub(crate) struct SingleResponse<A> {
    pub(crate) model: String,
    #[serde(flatten)]
    pub(crate) answer: A,
}

/// Response of a batch request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchResponse<A> {
    /// Name of the model that answered.
    model: String,
    /// One answer or problem per input, in order.
    results: Vec<BatchResult<A>>,
    /// Number of inputs that failed.
    #[schema(example = 0, minimum = 0)]
    failed: usize,
}

/// Answer to one input, or its problem.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum BatchResult<A> {
    /// The input was answered successfully.
    Answer(A),
    /// The input could not be answered.
    Failed {
        /// The problem, as in the response to a single request.
        error: Problem,
    },
}

/// Runs `work` under the call's deadline, which the client may have shortened; see [`call::within`].
///
/// # Errors
/// Those of `work`; `deadline_exceeded`, `shutting_down`, `not_ready`.
pub(crate) async fn within_deadline<F: Future<Output = Result<Response, ApiError>>>(
    http: HttpRequest,
    state: &HttpState,
    context: &RequestContext,
    work: impl FnOnce(HttpRequest, std::time::Instant) -> F,
) -> Result<Response, ApiError> {
    let deadline = head::deadline(http.headers(), context.arrived, state.settings().deadline)?;
    call::within(&state.services()?.engine, deadline, work(http, deadline)).await
}

/// Handles a single call from request to response.
///
/// # Errors
/// Any error of the call or of its input.
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

/// Runs the only input of a prepared call and writes the response.
///
/// # Errors
/// Any error of the input.
pub(crate) async fn single_answer<E: Endpoint>(mut call: Call<E>) -> Result<Response, ApiError> {
    let item = call.items.pop().unwrap_or_else(|| Err(ApiError::internal()));
    let answer = call.run(item).await?;
    json(&SingleResponse { model: call.model.info.name.clone(), answer })
}

/// Handles a batch call from request to response. Once the call is admitted, the status is 200. If an input fails, its
/// entry in `results` contains the error.
///
/// # Errors
/// Those that concern the call as a whole.
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
                error.prefix_fields(&format!("inputs[{index}]"))
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

/// Serializes a JSON response directly from its type. Going through `serde_json::Value` would widen `f32` to `f64`.
///
/// # Errors
/// `internal_error` if serialization fails, which no answer type can cause.
pub(crate) fn json<T: Serialize>(answer: &T) -> Result<Response, ApiError> {
    if crate::faults::at("http::answer") {
        return Err(ApiError::internal());
    }
    let body = serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, "cannot serialize a response");
        ApiError::internal()
    })?;
    let content_type = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}
