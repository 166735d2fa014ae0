//! Heads that are no requests: why, what their sender is told, how they are counted and logged.
//!
//! hyper answers such a head by itself, with a status and an empty body, and then ends the connection with an error.
//! [`WithoutAutomaticAnswers`] keeps that answer back, so that `server` can write one with a problem in its place. No
//! layer of the router sees these heads, so this file also does what `middleware::observe` does for requests.

mod automatic_answer;

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;

use super::connection::HeadTooSlow;
use super::error::{ApiError, Code, PROBLEM_JSON};
use super::middleware::access_log::{AccessLog, RefusedHead};
use super::middleware::headers::set_security_headers;
use super::middleware::request_id::{X_REQUEST_ID, new_id};
use super::settings::ConnectionSettings;
use crate::telemetry::metrics::Metrics;
pub(crate) use automatic_answer::{KeptBack, WithoutAutomaticAnswers};

/// Their route in metrics and the log.
pub(crate) const ROUTE: &str = "malformed";
/// Their method there.
pub(crate) const METHOD: &str = "other";

/// The codes of such heads.
pub(crate) const CODES: [Code; 3] =
    [Code::InvalidRequest, Code::HeadTooLarge, Code::RequestTimeout];

/// A head that is no request.
#[derive(Debug)]
pub(crate) struct MalformedHead {
    refusal: ApiError,
    /// An answer can be written: nothing of another one is left unsent.
    can_answer: bool,
    date: Option<String>,
    /// For the log: what the parser said.
    reason: String,
}

impl MalformedHead {
    /// Why a connection ended, if it was over a head. `unread` is what was read of it, `kept_back` hyper's own answer.
    pub(crate) fn of(
        error: &hyper::Error,
        unread: &[u8],
        kept_back: Option<KeptBack>,
        settings: &ConnectionSettings,
    ) -> Option<Self> {
        let refusal = if error.is_parse_too_large() {
            too_large(settings)
        } else if error.is_parse_version_h2() {
            ApiError::invalid("HTTP/2 is not spoken here; send HTTP/1.1")
        } else if error.is_parse() && unread.starts_with(&TLS_RECORD) {
            ApiError::invalid("this is TLS, and plain HTTP is spoken here; ask with http://")
        } else if error.is_parse() {
            ApiError::invalid(format!("this is not the head of an HTTP/1.1 request: {error}"))
        } else if !unread.is_empty() && is_too_slow(error) {
            ApiError::new(
                Code::RequestTimeout,
                "the head of the request did not arrive in time; send it at once",
            )
        } else {
            return None;
        };
        let is_too_slow = refusal.code == Code::RequestTimeout;
        let reason = if is_too_slow { HeadTooSlow.to_string() } else { error.to_string() };
        // hyper has no answer to HTTP/2 and to slow heads.
        let can_answer = kept_back.is_some() || !error.is_parse() || error.is_parse_version_h2();
        let date = kept_back.and_then(|kept_back| kept_back.date);
        Some(Self { refusal, can_answer, date, reason })
    }

    /// Whether an answer can be written.
    pub(crate) fn can_answer(&self) -> bool {
        self.can_answer
    }

    /// Counts and logs it; the answer to it.
    pub(crate) fn refuse(&self, metrics: &Metrics, log: &AccessLog, peer: SocketAddr) -> Vec<u8> {
        let (code, id) = (self.refusal.code, new_id());
        let status = code.status().as_u16();
        let labels = [ROUTE, METHOD, &status.to_string(), code.name()];
        metrics.http_requests_total.with_label_values(&labels).inc();
        metrics.request_failures_total.with_label_values(&[code.name()]).inc();
        log.write_refused_head(&RefusedHead {
            id: &id,
            route: ROUTE,
            method: METHOD,
            status,
            code: code.name(),
            problem: &self.reason,
            peer,
        });
        self.answer(&id)
    }

    /// As the layers of the router would have written it.
    fn answer(&self, id: &str) -> Vec<u8> {
        let body = self.refusal.to_body(id);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(
            X_REQUEST_ID,
            HeaderValue::from_str(id).expect("an id holds only letters, digits and ._:-"),
        );
        if let Some(date) = self.date.as_ref().and_then(|date| date.parse().ok()) {
            headers.insert(header::DATE, date);
        }
        set_security_headers(&mut headers);
        headers.extend(self.refusal.clone().closing().into_response().into_parts().0.headers);
        let mut answer = format!("HTTP/1.1 {}\r\n", self.refusal.code.status()).into_bytes();
        for (name, value) in &headers {
            answer.extend_from_slice(name.as_str().as_bytes());
            answer.extend_from_slice(b": ");
            answer.extend_from_slice(value.as_bytes());
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(&body);
        answer
    }
}

/// The first bytes of a TLS handshake record.
const TLS_RECORD: [u8; 2] = [0x16, 0x03];

fn too_large(settings: &ConnectionSettings) -> ApiError {
    let (fields, bytes) = (settings.max_headers, settings.max_head_bytes);
    ApiError::new(
        Code::HeadTooLarge,
        format!("a head may have {fields} fields and {bytes} bytes; send fewer or shorter fields"),
    )
}

/// One of the two clocks of a head has run out.
fn is_too_slow(error: &hyper::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let of_stream = causes.any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        matches!(inner, Some(inner) if inner.is::<HeadTooSlow>())
    });
    of_stream || error.is_timeout()
}
