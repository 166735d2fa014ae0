//! Code that all inference handlers share: it runs single and batch calls and writes their JSON responses.

use std::io;

use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::call::{BatchCall, SingleCall};
use super::endpoint::Endpoint;
use super::start;
use crate::engine::ReservationGuard;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Problem};
use crate::http::state::HttpState;
use crate::input::{self, InputError};
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

/// Handles a single call from request to response.
///
/// # Errors
/// Any error of the call or of its input.
pub(crate) async fn answer_single<E: Endpoint>(
    state: &HttpState,
    context: &RequestContext,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    single_answer(start::single::<E>(http, state, context).await?).await
}

/// Runs the input of a prepared single call and writes the response.
///
/// # Errors
/// Any error of the input.
pub(crate) async fn single_answer<E: Endpoint>(
    single: SingleCall<E>,
) -> Result<Response, ApiError> {
    let SingleCall { call, input, .. } = single;
    let answer = call.run(input).await?;
    call.respond(SingleResponse { model: call.model.info.name.clone(), answer }).await
}

/// Handles a batch call from request to response. Once the call has been prepared, the status is 200. If an input
/// fails, its entry in `results` contains the error.
///
/// # Errors
/// Those that concern the call as a whole.
pub(crate) async fn answer_batch<E: Endpoint>(
    state: &HttpState,
    context: &RequestContext,
    http: HttpRequest,
) -> Result<Response, ApiError> {
    let BatchCall { call, inputs } = start::batch::<E>(http, state, context).await?;
    let call = &call;
    let answers = join_all(inputs.into_iter().enumerate().map(|(index, input)| async move {
        call.run(input).await.map_err(|error| match error.errors.first() {
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
    let model = call.model.info.name.clone();
    call.respond(BatchResponse { model, results: results.collect(), failed }).await
}

/// Serializes a small JSON response directly from its type. Going through `serde_json::Value` would widen `f32` to `f64`.
/// Answers of models may be large: [`Call::respond`](super::call::Call::respond) writes them.
///
/// # Errors
/// `overloaded` if there is no memory for the response; `internal_error` if serialization fails otherwise, which no
/// answer type can cause.
pub(crate) fn json<T: Serialize>(answer: &T) -> Result<Response, ApiError> {
    Ok(of_bytes(to_bytes(answer)?, None))
}

/// Returns the response with this JSON. It keeps `hold` until it is sent.
pub(super) fn of_bytes(bytes: Vec<u8>, hold: Option<ReservationGuard>) -> Response {
    let body = Bytes::from_owner(HeldBytes { bytes, _hold: hold });
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Serializes JSON like [`json`].
///
/// # Errors
/// Those of [`json`].
pub(crate) fn to_bytes<T: Serialize>(answer: &T) -> Result<Vec<u8>, ApiError> {
    Ok(to_bytes_within(answer, usize::MAX)?.unwrap_or_default())
}

/// Serializes JSON like [`json`]; `None` if it has more than `max` bytes.
///
/// # Errors
/// Those of [`json`].
pub(super) fn to_bytes_within<T: Serialize>(
    answer: &T,
    max: usize,
) -> Result<Option<Vec<u8>>, ApiError> {
    if crate::faults::at("http::answer") {
        return Err(ApiError::internal());
    }
    let mut body = ResponseBody { bytes: Vec::new(), max, is_too_large: false };
    match serde_json::to_writer(&mut body, answer) {
        Ok(()) => Ok(Some(body.bytes)),
        Err(_) if body.is_too_large => Ok(None),
        Err(error) if error.is_io() => {
            Err(InputError::OutOfMemory { bytes: body.bytes.len() as u64 }.into())
        }
        Err(error) => {
            tracing::error!(%error, "cannot serialize a response");
            Err(ApiError::internal())
        }
    }
}

/// The bytes of a response, with the reservation for them.
struct HeldBytes {
    bytes: Vec<u8>,
    _hold: Option<ReservationGuard>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes of a response. A write fails if there is no memory for it: the response to a batch call can have megabytes.
struct ResponseBody {
    bytes: Vec<u8>,
    max: usize,
    /// True if a write failed because there would be more than `max` bytes.
    is_too_large: bool,
}

impl io::Write for ResponseBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > self.max {
            self.is_too_large = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        input::reserve(&mut self.bytes, bytes.len()).map_err(io::Error::other)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_the_size_of_an_answer_is_exact() {
        let answer = ["a", "bc"];
        assert_eq!(to_bytes(&answer).unwrap(), br#"["a","bc"]"#);
        assert_eq!(to_bytes_within(&answer, 10).unwrap().unwrap(), br#"["a","bc"]"#);
        assert_eq!(to_bytes_within(&answer, 9).unwrap(), None);
    }
}
