//! How errors of other folders become refusals: what each means to a client.

use std::time::Duration;

use super::error::{ApiError, Code};
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
                "the server has no room at present; try again after the delay in retry-after",
            )
            .retry_after(retry_after),
            EngineError::TooLargeForDeadline { estimate, deadline } => Self::new(
                Code::BatchTooLarge,
                format!(
                    "the call would take about {} ms of an idle server, its deadline leaves {} ms; ask for less in one call",
                    estimate.as_millis(),
                    deadline.as_millis()
                ),
            ),
            EngineError::TooManyRows { rows, capacity } => Self::new(
                Code::BatchTooLarge,
                format!("the call needs {rows} rows, the queue holds {capacity}; split it"),
            ),
            EngineError::ShuttingDown => shutting_down(),
            EngineError::WorkerDown => Self::not_ready(),
            EngineError::DeadlineExceeded => Self::deadline_exceeded(),
            EngineError::InferenceFailed(_) => inference_failed(),
            EngineError::SlowReader => {
                Self::new(Code::RequestTimeout, "the stream was read too slowly; read faster")
            }
        }
    }
}

/// The process is ending.
fn shutting_down() -> ApiError {
    let error = ApiError::new(
        Code::ShuttingDown,
        "the server is shutting down; try another, or this one later",
    );
    error.retry_after(Duration::from_secs(5))
}

/// The model failed, or gave something that is no number.
pub(crate) fn inference_failed() -> ApiError {
    ApiError::new(
        Code::InferenceFailed,
        "the model failed on this input; the cause is in the server's log",
    )
}

impl From<InputError> for ApiError {
    fn from(error: InputError) -> Self {
        let code = match &error {
            InputError::InvalidImageValue { .. } | InputError::InvalidText { .. } => {
                Code::InvalidRequest
            }
            InputError::ImageFileTooLarge { .. } => Code::PayloadTooLarge,
            InputError::EmptyImageFile | InputError::UnsupportedImageFormat => {
                Code::UnsupportedImageFormat
            }
            InputError::UndecodableImage { .. } => Code::UndecodableImage,
            InputError::ImageTooLarge { .. } | InputError::DecodedImageTooLarge { .. } => {
                Code::ImageTooLarge
            }
            InputError::OutOfMemory { bytes } => {
                tracing::warn!(bytes, "no memory for an image");
                return Self::new(Code::Overloaded, error.to_string())
                    .retry_after(Duration::from_secs(1));
            }
            // Whoever waited has left; if someone is there all the same, the time is over.
            InputError::Stopped => return Self::deadline_exceeded(),
            InputError::TextTooLong { .. } => Code::TextTooLong,
            InputError::Tokenizer(cause) => {
                tracing::error!(cause = clipped(&cause), "a tokenizer failed");
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
                "the image is not held (any more); send its bytes again",
            ),
            ImagesError::Overloaded => {
                Self::new(Code::Overloaded, "too many images wait for decoding; try again later")
                    .retry_after(Duration::from_secs(1))
            }
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
                let detail = "too many images are being fetched; try again later";
                return Self::new(Code::Overloaded, detail).retry_after(Duration::from_secs(1));
            }
        };
        Self::new(code, error.to_string())
    }
}

impl ApiError {
    /// The same error at a field.
    pub(crate) fn at(self, field: &str) -> Self {
        if !self.errors.is_empty() {
            return self;
        }
        Self { errors: vec![super::error::FieldError::new(field, self.detail.clone())], ..self }
    }
}
