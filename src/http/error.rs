//! Every refusal that a client can see, and the only file with status codes of refusals.
//!
//! - [`Code`] is the closed list of `api.md`; clients switch on it alone.
//! - [`ApiError`] is what handlers and extractors return. Its `detail` says what is accepted and what to do
//!   next, never how the server works inside; causes are logged where they happen.
//! - [`Problem`] is its shape on the wire (RFC 9457). `middleware::problem` renders it, because only there the
//!   request's id is known; batch answers and event streams render it themselves.
//!
//! How the errors of other folders become an [`ApiError`] is in `convert`.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of every refusal.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// What comes with 401.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"blip\"");

macro_rules! codes {
    ($($code:ident $name:literal $status:ident $title:literal;)*) => {
        /// What went wrong; the list is closed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Code {
            $(#[doc = $title] $code,)*
        }

        impl Code {
            /// Every code.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$code),*];

            /// The code as clients see it.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// Its status.
            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$status,)* }
            }

            /// A short sentence that never varies.
            pub(crate) fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }
        }
    };
}

codes! {
    InvalidRequest "invalid_request" BAD_REQUEST "The request is not valid";
    Unauthorized "unauthorized" UNAUTHORIZED "An API key is needed";
    OriginNotAllowed "origin_not_allowed" FORBIDDEN "Pages of this origin may not ask";
    RouteNotFound "route_not_found" NOT_FOUND "There is nothing at this path";
    ModelNotFound "model_not_found" NOT_FOUND "No such model is loaded for this endpoint";
    TaskNotLoaded "task_not_loaded" NOT_FOUND "No loaded model serves this endpoint";
    ImageNotFound "image_not_found" NOT_FOUND "The image is not held any more";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "The path does not take this method";
    HeadTooLarge "head_too_large" REQUEST_HEADER_FIELDS_TOO_LARGE "The head of the request is too large";
    RequestTimeout "request_timeout" REQUEST_TIMEOUT "The client was too slow";
    PayloadTooLarge "payload_too_large" PAYLOAD_TOO_LARGE "The body or an image file is too large";
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The body's type or encoding is not accepted";
    UnsupportedImageFormat "unsupported_image_format" UNSUPPORTED_MEDIA_TYPE "The image's format is not accepted";
    UndecodableImage "undecodable_image" UNPROCESSABLE_ENTITY "The image cannot be decoded";
    ImageTooLarge "image_too_large" UNPROCESSABLE_ENTITY "The image has too many pixels";
    TextTooLong "text_too_long" UNPROCESSABLE_ENTITY "A text is too long";
    BatchTooLarge "batch_too_large" UNPROCESSABLE_ENTITY "The call asks for too much at once";
    ScoreNotAvailable "score_not_available" UNPROCESSABLE_ENTITY "The model does not have this score";
    FetchDisabled "fetch_disabled" UNPROCESSABLE_ENTITY "Images are not fetched by URL";
    UrlNotAllowed "url_not_allowed" UNPROCESSABLE_ENTITY "The URL is not allowed";
    UrlUnreachable "url_unreachable" UNPROCESSABLE_ENTITY "The URL could not be fetched";
    RateLimited "rate_limited" TOO_MANY_REQUESTS "Too many requests";
    InferenceFailed "inference_failed" INTERNAL_SERVER_ERROR "The model failed on this input";
    InternalError "internal_error" INTERNAL_SERVER_ERROR "The server failed";
    Overloaded "overloaded" SERVICE_UNAVAILABLE "The server has no room at present";
    NotReady "not_ready" SERVICE_UNAVAILABLE "The server is not ready";
    ShuttingDown "shutting_down" SERVICE_UNAVAILABLE "The server is shutting down";
    DeadlineExceeded "deadline_exceeded" GATEWAY_TIMEOUT "The deadline passed before the answer was ready";
}

/// A field at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FieldError {
    /// Its path, the same in every encoding.
    #[schema(example = "inputs[2].num_beams")]
    pub(crate) field: String,
    /// What is accepted there.
    pub(crate) detail: String,
}

impl FieldError {
    /// A fault of `field`.
    pub(crate) fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: printable(field.into()), detail: printable(detail.into()) }
    }

    /// The same fault seen from the value that holds the field.
    pub(crate) fn inside(self, parent: &str) -> Self {
        if parent.is_empty() {
            return self;
        }
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}

/// Without control characters: names of a client's own making are repeated, and a terminal that shows them would obey.
fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}

/// A refusal or failure as handlers return it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    /// What went wrong.
    pub(crate) code: Code,
    /// What is accepted and what to do next.
    pub(crate) detail: Cow<'static, str>,
    /// The fields at fault.
    pub(crate) errors: Vec<FieldError>,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
    /// The connection cannot be used further: the request's body was left unread.
    pub(crate) close: bool,
}

/// A refusal on the wire.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `urn:blip:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:blip:problem:invalid_request")]
    kind: String,
    /// A short sentence that never varies with the code.
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    status: u16,
    /// What to switch on.
    #[schema(inline)]
    code: Code,
    /// What is accepted and what to do next.
    detail: String,
    /// The request's id, as in `x-request-id`.
    request_id: String,
    /// The fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl ApiError {
    /// A refusal without a field.
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, close: false }
    }

    /// One field is at fault.
    pub(crate) fn field(code: Code, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::fields(code, vec![FieldError::new(field, detail)])
    }

    /// These fields are at fault; the detail repeats the first.
    pub(crate) fn fields(code: Code, errors: Vec<FieldError>) -> Self {
        let detail = errors.first().map_or_else(
            || code.title().to_owned(),
            |first| format!("{}: {}", first.field, first.detail),
        );
        Self { errors, ..Self::new(code, detail) }
    }

    /// The request is not valid as a whole.
    pub(crate) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// The deadline has passed.
    pub(crate) fn deadline_exceeded() -> Self {
        Self::new(
            Code::DeadlineExceeded,
            "the deadline passed before the answer was ready; ask for less, or allow more time",
        )
    }

    /// The server is still loading, or its worker has gone.
    pub(crate) fn not_ready() -> Self {
        let error = Self::new(Code::NotReady, "no model is ready to answer; see /health/ready");
        error.retry_after(Duration::from_secs(5))
    }

    /// Something that must not happen; the cause has been logged.
    pub(crate) fn internal() -> Self {
        Self::new(Code::InternalError, "the server failed on this request; the cause is in its log")
    }

    /// Tells when to try again.
    pub(crate) fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// Ends the connection after this answer.
    pub(crate) fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// The same refusal seen from the value that holds the fields.
    pub(crate) fn inside(mut self, parent: &str) -> Self {
        if let Some(first) = self.errors.first()
            && self.detail.starts_with(&first.field)
        {
            self.detail = Cow::Owned(format!("{parent}.{}", self.detail));
        }
        self.errors = self.errors.into_iter().map(|error| error.inside(parent)).collect();
        self
    }

    /// Its shape on the wire.
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

    /// The body of its answer.
    pub(crate) fn to_body(&self, request_id: &str) -> Vec<u8> {
        serde_json::to_vec(&self.to_problem(request_id))
            .expect("a problem holds only strings and numbers")
    }

    /// `Retry-After` in whole seconds, at least 1; every other request is told a second more, so that those who were
    /// refused together do not come back together.
    pub(crate) fn retry_after_value(&self, request_id: &str) -> Option<HeaderValue> {
        let seconds = self.retry_after?.as_millis().div_ceil(1000).max(1) as u64;
        Some(HeaderValue::from(seconds + jitter(request_id)))
    }
}

impl IntoResponse for ApiError {
    /// The status, the error itself as an extension, no body yet: `middleware::problem` adds it and `Retry-After`.
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

/// 0 or 1, by the request's id: the same request is told the same.
fn jitter(request_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    request_id.hash(&mut hasher);
    hasher.finish() & 1
}

/// The refusal that stands for a status that the framework answered by itself.
pub(crate) fn from_status(status: StatusCode) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => {
            ApiError::new(Code::RouteNotFound, "there is nothing at this path; check its spelling")
        }
        StatusCode::METHOD_NOT_ALLOWED => ApiError::new(
            Code::MethodNotAllowed,
            "this path does not take this method; the allow header lists those that it takes",
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
        let error = error.inside("inputs[2]");
        assert_eq!(error.errors[0].field, "inputs[2].num_beams");
        assert_eq!(error.detail, "inputs[2].num_beams: an integer from 1 to 8");
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
