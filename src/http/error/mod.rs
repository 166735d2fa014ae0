//! Every error that a client can see. This is the only file that assigns HTTP status codes to errors.
//!
//! - [`Code`] is the closed list of error codes. Programs should distinguish errors only by their code.
//! - [`ApiError`] is what handlers and extractors return. Its `detail` says what is accepted and what to do next. It
//!   never reveals internals; causes are logged where they occur.
//! - [`Problem`] is the response body of an error (RFC 9457). `middleware::problem` writes it, because the request's id
//!   is known there. Batch responses and event streams contain problems in their own bodies; `inference::reply` and
//!   `routes::caption` write those.
//!
//! `convert` turns the errors of other folders into an [`ApiError`]. `dialect` writes errors in the formats of other APIs.

pub(crate) mod convert;
pub(crate) mod dialect;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of every error response.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// The `www-authenticate` header of a 401 response.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"blip\"");

macro_rules! codes {
    ($($code:ident $name:literal $status:ident $title:literal;)*) => {
        /// Error code, by which programs should distinguish errors. The list of codes is closed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Code {
            $(#[doc = $title] $code,)*
        }

        impl Code {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$code),*];

            /// Returns the code as it appears in responses and metric labels.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// Returns the HTTP status of the response.
            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$status,)* }
            }

            /// Returns a short sentence, the same for every error with this code.
            pub(crate) fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }
        }
    };
}

codes! {
    InvalidRequest "invalid_request" BAD_REQUEST "The request is not valid";
    Unauthorized "unauthorized" UNAUTHORIZED "A valid API key is needed";
    OriginNotAllowed "origin_not_allowed" FORBIDDEN "Requests from this origin are not allowed";
    RouteNotFound "route_not_found" NOT_FOUND "No endpoint exists at this path";
    ModelNotFound "model_not_found" NOT_FOUND "No such model is loaded for this endpoint";
    TaskNotLoaded "task_not_loaded" NOT_FOUND "No loaded model serves this endpoint";
    ImageNotFound "image_not_found" NOT_FOUND "The image is not in the cache";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "The path does not support this method";
    HeadTooLarge "head_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "The request line or headers are too large";
    RequestTimeout "request_timeout" REQUEST_TIMEOUT "The client was too slow";
    PayloadTooLarge "payload_too_large" PAYLOAD_TOO_LARGE "The body or an image file is too large";
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The content type or encoding is not supported";
    UnsupportedImageFormat "unsupported_image_format" UNSUPPORTED_MEDIA_TYPE "The image format is not supported";
    UndecodableImage "undecodable_image" UNPROCESSABLE_ENTITY "The image cannot be decoded";
    ImageTooLarge "image_too_large" UNPROCESSABLE_ENTITY "The image has too many pixels";
    TextTooLong "text_too_long" UNPROCESSABLE_ENTITY "A text is too long";
    BatchTooLarge "batch_too_large" UNPROCESSABLE_ENTITY "The request asks for too much at once";
    ScoreNotAvailable "score_not_available" UNPROCESSABLE_ENTITY "The model does not support this score";
    FetchDisabled "fetch_disabled" UNPROCESSABLE_ENTITY "Fetching images by URL is disabled";
    UrlNotAllowed "url_not_allowed" UNPROCESSABLE_ENTITY "The URL is not allowed";
    UrlUnreachable "url_unreachable" UNPROCESSABLE_ENTITY "The URL could not be fetched";
    RateLimited "rate_limited" TOO_MANY_REQUESTS "Too many requests";
    InferenceFailed "inference_failed" INTERNAL_SERVER_ERROR "The model failed on this input";
    InternalError "internal_error" INTERNAL_SERVER_ERROR "Internal server error";
    Overloaded "overloaded" SERVICE_UNAVAILABLE "The server is overloaded";
    NotReady "not_ready" SERVICE_UNAVAILABLE "The server is not ready";
    ShuttingDown "shutting_down" SERVICE_UNAVAILABLE "The server is shutting down";
    DeadlineExceeded "deadline_exceeded" GATEWAY_TIMEOUT "The deadline passed before the answer was ready";
}

/// An invalid field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FieldError {
    /// Path of the field, the same for JSON, forms and query strings.
    #[schema(example = "inputs[2].num_beams")]
    pub(crate) field: String,
    /// What is wrong with the field, or what it accepts.
    pub(crate) detail: String,
}

impl FieldError {
    /// Creates the error, with control characters in both texts replaced.
    pub(crate) fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: printable(field.into()), detail: printable(detail.into()) }
    }

    /// Prefixes the field's path with `parent`, the path of the value that contains the field.
    pub(crate) fn prefix_fields(self, parent: &str) -> Self {
        if parent.is_empty() {
            return self;
        }
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}

/// Replaces control characters. Errors repeat field names that the client made up, and a terminal would interpret
/// control characters in them.
fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}

/// The error type of handlers and extractors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    /// What is accepted and what the client can do next.
    pub(crate) detail: Cow<'static, str>,
    /// The invalid fields; empty if the error concerns no field.
    pub(crate) errors: Vec<FieldError>,
    /// Delay for the `retry-after` header.
    pub(crate) retry_after: Option<Duration>,
    /// True if the connection must close after the response, because the request's body was not read to its end.
    pub(crate) close: bool,
}

/// An error response (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// URI of the error type: `urn:blip:problem:` followed by `code`.
    #[serde(rename = "type")]
    #[schema(example = "urn:blip:problem:invalid_request")]
    kind: String,
    /// A short sentence, always the same for one `code`.
    title: &'static str,
    /// HTTP status of this error.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    status: u16,
    /// Error code, by which programs should distinguish errors.
    #[schema(inline)]
    code: Code,
    /// What is accepted and what you can do next.
    detail: String,
    /// Request id, as in `x-request-id`.
    request_id: String,
    /// The invalid fields; absent if the error concerns no field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl ApiError {
    /// Creates an error that concerns no single field.
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, close: false }
    }

    /// Creates an error that concerns one field.
    pub(crate) fn field(code: Code, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::fields(code, vec![FieldError::new(field, detail)])
    }

    /// Creates an error that concerns these fields. Its detail repeats the first field error.
    pub(crate) fn fields(code: Code, errors: Vec<FieldError>) -> Self {
        let detail = errors.first().map_or_else(
            || code.title().to_owned(),
            |first| format!("{}: {}", first.field, first.detail),
        );
        Self { errors, ..Self::new(code, detail) }
    }

    /// Creates an `invalid_request` error that concerns no single field.
    pub(crate) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    pub(crate) fn deadline_exceeded() -> Self {
        Self::new(
            Code::DeadlineExceeded,
            "the deadline passed before the answer was ready; ask for less or allow more time",
        )
    }

    /// Creates the error for a server whose models are still loading, or whose worker is down or rebuilds its backend.
    pub(crate) fn not_ready() -> Self {
        let detail = "the models are not ready to answer, or are being reloaded; retry later";
        let error = Self::new(Code::NotReady, detail);
        error.retry_after(Duration::from_secs(5))
    }

    /// Creates an internal error. The caller must already have logged the cause.
    pub(crate) fn internal() -> Self {
        Self::new(Code::InternalError, "internal server error; the server log has the cause")
    }

    /// Sets the delay for the `retry-after` header.
    pub(crate) fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Makes the server close the connection after the response.
    pub(crate) fn close_connection(self) -> Self {
        Self { close: true, ..self }
    }

    /// Prefixes the paths of all fields with `parent`, the path of the value that contains the fields.
    pub(crate) fn prefix_fields(mut self, parent: &str) -> Self {
        if let Some(first) = self.errors.first()
            && self.detail.starts_with(&first.field)
        {
            self.detail = Cow::Owned(format!("{parent}.{}", self.detail));
        }
        self.errors = self.errors.into_iter().map(|error| error.prefix_fields(parent)).collect();
        self
    }

    /// Renames a field, and the fields below it, in the formats of other APIs.
    pub(crate) fn rename_field(mut self, from: &str, to: &str) -> Self {
        let renamed = |field: &str| {
            let rest = field.strip_prefix(from)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{to}{rest}"))
        };
        if let Some(first) = self.errors.first()
            && let Some(rest) = self.detail.strip_prefix(&first.field)
            && let Some(name) = renamed(&first.field)
        {
            self.detail = Cow::Owned(format!("{name}{rest}"));
        }
        for error in &mut self.errors {
            if let Some(name) = renamed(&error.field) {
                error.field = name;
            }
        }
        self
    }

    /// Returns the problem that the client receives.
    pub(crate) fn to_problem(&self, request_id: &str) -> Problem {
        Problem {
            kind: format!("urn:blip:problem:{}", self.code.name()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code: self.code,
            detail: self.detail.clone().into_owned(),
            request_id: request_id.to_owned(),
            errors: self.errors.clone(),
        }
    }

    /// Returns the response body, which is the problem as JSON.
    pub(crate) fn to_body(&self, request_id: &str) -> Vec<u8> {
        serde_json::to_vec(&self.to_problem(request_id))
            .expect("a problem holds only strings and numbers")
    }

    /// Returns the value of `Retry-After` in whole seconds, rounded up, at least 1. Half of the requests get one second
    /// more (jitter), so that clients rejected at the same time do not all retry at the same time.
    pub(crate) fn retry_after_value(&self, request_id: &str) -> Option<HeaderValue> {
        let seconds = self.retry_after?.as_millis().div_ceil(1000).max(1) as u64;
        Some(HeaderValue::from(seconds + jitter(request_id)))
    }
}

impl IntoResponse for ApiError {
    /// Sets the status and stores the error as an extension. `middleware::problem` adds the body and `Retry-After`.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        if self.close {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.code == Code::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Returns 0 or 1, derived from the request's id, so that the same id always gets the same value.
fn jitter(request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    request_id.hash(&mut hasher);
    hasher.finish() & 1
}

/// Returns the error for a response that axum or hyper created without a handler. Only the status of such a response is
/// known.
pub(crate) fn from_status(status: StatusCode) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => {
            ApiError::new(Code::RouteNotFound, "no endpoint at this path; check the spelling")
        }
        StatusCode::METHOD_NOT_ALLOWED => ApiError::new(
            Code::MethodNotAllowed,
            "this path does not support this method; the allow header lists those that it supports",
        ),
        StatusCode::REQUEST_TIMEOUT => {
            ApiError::new(Code::RequestTimeout, "the request did not arrive in time; send it again")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(Code::PayloadTooLarge, "the body is too large; /info shows the limits")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ApiError::new(
            Code::UnsupportedMediaType,
            "send application/json, multipart/form-data or a raw image",
        ),
        other if other.is_client_error() => ApiError::invalid("the request is not valid"),
        _ => ApiError::internal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_equal_the_names_in_labels() {
        for code in Code::ALL {
            let wire = serde_json::to_string(code).unwrap();
            assert_eq!(wire, format!("\"{}\"", code.name()));
        }
    }

    #[test]
    fn a_field_of_an_item_is_named_by_its_whole_path() {
        let error = ApiError::field(Code::InvalidRequest, "num_beams", "an integer from 1 to 8");
        let error = error.prefix_fields("inputs[2]");
        assert_eq!(error.errors[0].field, "inputs[2].num_beams");
        assert_eq!(error.detail, "inputs[2].num_beams: an integer from 1 to 8");
    }

    #[test]
    fn a_field_can_have_another_name() {
        let renamed = |field: &str| {
            let error = ApiError::field(Code::InvalidRequest, field, "is wrong");
            error.rename_field("image", "messages")
        };
        for (field, name) in
            [("image", "messages"), ("image.x", "messages.x"), ("images", "images"), ("x", "x")]
        {
            let error = renamed(field);
            assert_eq!(error.errors[0].field, name);
            assert_eq!(error.detail, format!("{name}: is wrong"));
        }
    }

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds_and_half_of_the_requests_wait_one_more() {
        let error = ApiError::not_ready().retry_after(Duration::from_millis(1200));
        let told = |id: usize| {
            let value = error.retry_after_value(&format!("0123456789abcdef-{id:08x}")).unwrap();
            value.to_str().unwrap().parse::<u64>().unwrap()
        };
        let all: Vec<u64> = (0..1000).map(told).collect();
        assert_eq!(all, (0..1000).map(told).collect::<Vec<_>>());
        assert!(all.iter().all(|seconds| [2, 3].contains(seconds)), "{all:?}");
        let later = all.iter().filter(|seconds| **seconds == 3).count();
        assert!((400..600).contains(&later), "{later}");
    }

    #[test]
    fn a_problem_leaves_out_what_does_not_apply() {
        let problem = ApiError::deadline_exceeded().to_problem("r-1");
        let json = serde_json::to_string(&problem).unwrap();
        assert!(json.starts_with(
            r#"{"type":"urn:blip:problem:deadline_exceeded","title":"The deadline passed"#
        ));
        assert!(!json.contains("errors"), "{json}");
        assert!(json.contains(r#""request_id":"r-1""#), "{json}");
    }
}
