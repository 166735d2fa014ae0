//! The formats in which errors are written: the problem documents of this server, and the error bodies of the APIs that
//! the compatible routes speak. `middleware::problem` writes errors with this.
//!
//! The official client libraries of those APIs show only the message that they find in the body of their own format. So
//! an error must have that format even if the framework created it, for example for a method that a path does not
//! support.

use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::{ApiError, Code, PROBLEM_JSON};

/// The API to which a path belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// This server's own API.
    Native,
    /// The API of OpenAI, below `/v1/`.
    OpenAi,
    /// The API of Ollama, below `/api/`.
    Ollama,
    /// The task API of Hugging Face, below `/hf/`.
    HuggingFace,
}

/// An error response: status, media type and body.
#[derive(Debug)]
pub(crate) struct ErrorBody {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// An error of the OpenAI API.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiError {
    /// What is wrong.
    error: OpenAiErrorDetail,
}

/// What is wrong, as clients of the OpenAI API expect it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiErrorDetail {
    /// What is accepted and what to do next.
    message: String,
    /// Kind of error: `invalid_request_error`, `requests` (too many requests) or `server_error`.
    r#type: &'static str,
    /// The field at fault, or null.
    #[schema(required = true)]
    param: Option<String>,
    /// Error code: `invalid_api_key`, `rate_limit_exceeded`, or the code that this server's own routes use.
    code: &'static str,
}

/// An error of the Ollama and Hugging Face APIs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlainError {
    /// What is accepted and what to do next.
    error: String,
}

impl Dialect {
    /// Returns the API to which this path belongs.
    pub(crate) fn of(path: &str) -> Self {
        let prefixes =
            [("/v1/", Self::OpenAi), ("/api/", Self::Ollama), ("/hf/", Self::HuggingFace)];
        let found = prefixes.into_iter().find(|(prefix, _)| path.starts_with(prefix));
        found.map_or(Self::Native, |(_, dialect)| dialect)
    }

    /// Returns the HTTP status of an error. The OpenAI API has no 422. The routes of Hugging Face send 429 instead of 503,
    /// like text-embeddings-inference: after a 503, `@huggingface/inference` retries at once and without end.
    pub(crate) fn status(self, code: Code) -> StatusCode {
        match (self, code.status()) {
            (Self::OpenAi, StatusCode::UNPROCESSABLE_ENTITY) => StatusCode::BAD_REQUEST,
            (Self::HuggingFace, StatusCode::SERVICE_UNAVAILABLE) => StatusCode::TOO_MANY_REQUESTS,
            (_, status) => status,
        }
    }

    /// Writes an error in the format of this API.
    ///
    /// # Panics
    /// Never: an error holds only strings and numbers.
    pub(crate) fn error_body(self, error: &ApiError, request_id: &str) -> ErrorBody {
        let json = |body: serde_json::Result<Vec<u8>>| body.expect("strings and numbers only");
        let (content_type, bytes) = match self {
            Self::Native => (PROBLEM_JSON, error.to_body(request_id)),
            Self::OpenAi => {
                ("application/json", json(serde_json::to_vec(&OpenAiError::from(error))))
            }
            Self::Ollama | Self::HuggingFace => {
                ("application/json", json(serde_json::to_vec(&PlainError::from(error))))
            }
        };
        ErrorBody { status: self.status(error.code), content_type, bytes }
    }
}

impl From<&ApiError> for OpenAiError {
    fn from(error: &ApiError) -> Self {
        let own_names =
            [(Code::Unauthorized, "invalid_api_key"), (Code::RateLimited, "rate_limit_exceeded")];
        let own_name = own_names.into_iter().find(|(code, _)| *code == error.code);
        let code = own_name.map_or(error.code.name(), |(_, name)| name);
        let kind = match error.code.status() {
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = error.errors.first().map(|field| field.field.clone());
        let message = error.detail.clone().into_owned();
        Self { error: OpenAiErrorDetail { message, r#type: kind, param, code } }
    }
}

impl From<&ApiError> for PlainError {
    fn from(error: &ApiError) -> Self {
        Self { error: error.detail.clone().into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn body(path: &str, error: &ApiError) -> (u16, &'static str, Value) {
        let ErrorBody { status, content_type, bytes } = Dialect::of(path).error_body(error, "id");
        (status.as_u16(), content_type, serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn the_prefix_of_a_path_decides() {
        use Dialect::{HuggingFace, Native, Ollama, OpenAi};
        let dialects = ["/v1/models", "/api/tags", "/hf/x", "/caption", "/v1", "/apiary"];
        let expected = [OpenAi, Ollama, HuggingFace, Native, Native, Native];
        assert_eq!(dialects.map(Dialect::of), expected);
    }

    #[test]
    fn an_error_has_the_format_of_its_api() {
        let error = ApiError::field(Code::TextTooLong, "input[3]", "has 600 tokens");
        let detail = "input[3]: has 600 tokens";
        let openai = json!({"error": {
            "message": detail, "type": "invalid_request_error", "param": "input[3]", "code": "text_too_long",
        }});
        assert_eq!(body("/v1/embeddings", &error), (400, "application/json", openai));
        let plain = json!({"error": detail});
        assert_eq!(body("/api/embed", &error), (422, "application/json", plain.clone()));
        assert_eq!(body("/hf/feature-extraction", &error), (422, "application/json", plain));
        assert_eq!(body("/hf/x", &ApiError::not_ready()).0, 429);
        assert_eq!(body("/api/x", &ApiError::not_ready()).0, 503);
        let (status, content_type, native) = body("/embeddings", &error);
        assert_eq!((status, content_type), (422, PROBLEM_JSON));
        assert_eq!(native["code"], "text_too_long");
    }

    #[test]
    fn the_openai_api_has_its_own_names_for_two_codes_and_null_without_a_field() {
        let of = |code| body("/v1/models", &ApiError::new(code, "x")).2["error"].clone();
        let kinds = [
            (Code::Unauthorized, "invalid_request_error", "invalid_api_key"),
            (Code::RateLimited, "requests", "rate_limit_exceeded"),
            (Code::OriginNotAllowed, "invalid_request_error", "origin_not_allowed"),
            (Code::Overloaded, "server_error", "overloaded"),
            (Code::ModelNotFound, "invalid_request_error", "model_not_found"),
        ];
        for (code, kind, name) in kinds {
            let expected = json!({"message": "x", "type": kind, "param": null, "code": name});
            assert_eq!(of(code), expected);
        }
    }
}
