//! Converts errors of other folders (`engine`, `images`, `fetch`, `input`) into [`ApiError`].

use std::time::Duration;

use super::{ApiError, Code};
use crate::engine::EngineError;
use crate::fetch::FetchError;
use crate::images::ImagesError;
use crate::input::InputError;
use crate::telemetry::logging::clipped;

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded { retry_after } => Self::new(
                Code::Overloaded,
                "the server is overloaded; retry after the delay in the retry-after header",
            )
            .retry_after(retry_after),
            EngineError::TooLargeForDeadline { estimate, deadline } => Self::new(
                Code::BatchTooLarge,
                format!(
                    "the request would take about {} ms on an idle server, its deadline leaves {} ms; split it or ask for less",
                    estimate.as_millis(),
                    deadline.as_millis()
                ),
            ),
            EngineError::TooManyRows { rows, capacity } => Self::new(
                Code::BatchTooLarge,
                format!(
                    "the request needs {rows} rows, the queue holds {capacity} (engine.capacity_rows); split it"
                ),
            ),
            EngineError::ShuttingDown => shutting_down(),
            EngineError::WorkerDown => Self::not_ready(),
            EngineError::DeadlineExceeded => Self::deadline_exceeded(),
            EngineError::InferenceFailed(_) => inference_failed(),
            EngineError::SlowReader => {
                Self::new(Code::RequestTimeout, "the client reads too slowly; read faster")
            }
        }
    }
}

fn shutting_down() -> ApiError {
    let error = ApiError::new(
        Code::ShuttingDown,
        "the server is shutting down; retry on another server, or later",
    );
    error.retry_after(Duration::from_secs(5))
}

/// Returns the error for a model that failed or whose output was not finite.
pub(crate) fn inference_failed() -> ApiError {
    ApiError::new(
        Code::InferenceFailed,
        "the model failed on this input; the server log has the cause",
    )
}

impl From<InputError> for ApiError {
    fn from(error: InputError) -> Self {
        let code = match &error {
            InputError::InvalidImageValue { .. }
            | InputError::EmptyImageValue
            | InputError::InvalidText { .. } => Code::InvalidRequest,
            InputError::ImageFileTooLarge { .. } => Code::PayloadTooLarge,
            InputError::UnsupportedImageFormat => Code::UnsupportedImageFormat,
            InputError::EmptyImageFile | InputError::UndecodableImage { .. } => {
                Code::UndecodableImage
            }
            InputError::ImageTooLarge { .. } | InputError::DecodedImageTooLarge { .. } => {
                Code::ImageTooLarge
            }
            InputError::OutOfMemory { bytes } => {
                tracing::warn!(bytes, "cannot allocate memory for a request");
                return Self::new(Code::Overloaded, error.to_string())
                    .retry_after(Duration::from_secs(1));
            }
            // Decoding stops when no request waits for the image any longer. A client that still sees this error has
            // reached its deadline.
            InputError::Stopped => return Self::deadline_exceeded(),
            InputError::TextTooLong { .. } => Code::TextTooLong,
            InputError::Tokenizer(cause) => {
                tracing::error!(cause = clipped(&cause), "the tokenizer failed");
                return Self::internal();
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<ImagesError> for ApiError {
    fn from(error: ImagesError) -> Self {
        match error {
            ImagesError::Input(error) => error.into(),
            ImagesError::NotFound(_) => Self::new(
                Code::ImageNotFound,
                "no image with this id is in the cache; send the image's bytes again",
            ),
            ImagesError::Overloaded => Self::new(
                Code::Overloaded,
                "too many images wait to be decoded, or the memory is nearly used up; retry later",
            )
            .retry_after(Duration::from_secs(1)),
        }
    }
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        let code = match error {
            FetchError::NotAllowed(_) => Code::UrlNotAllowed,
            FetchError::Unreachable => Code::UrlUnreachable,
            FetchError::DeadlineExceeded => return Self::deadline_exceeded(),
            FetchError::Overloaded => {
                let detail = "too many images are being fetched; retry later";
                return Self::new(Code::Overloaded, detail).retry_after(Duration::from_secs(1));
            }
        };
        Self::new(code, error.to_string())
    }
}

impl ApiError {
    /// Assigns the error to a field, unless it already names one.
    pub(crate) fn at(self, field: &str) -> Self {
        if !self.errors.is_empty() {
            return self;
        }
        Self { errors: vec![super::FieldError::new(field, self.detail.clone())], ..self }
    }
}
