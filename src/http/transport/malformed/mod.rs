//! Handles request heads that hyper cannot parse: classifies the error, builds the response, and counts and logs the
//! head.
//!
//! hyper itself answers such a head with a status and an empty body, and then ends the connection with an error.
//! [`WithoutAutomaticAnswers`] holds that response back, so that `server` can write a response with a problem body
//! instead. No layer of the router sees these heads, so this file also counts and logs them, as `middleware::observe`
//! does for requests.

mod automatic_answer;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

pub(crate) use self::automatic_answer::{SuppressedAnswer, WithoutAutomaticAnswers};
use super::connection::HeadTooSlow;
use crate::http::error::{ApiError, Code, PROBLEM_JSON};
use crate::http::middleware::access_log::{AccessLog, RefusedHead};
use crate::http::middleware::headers::set_security_headers;
use crate::http::middleware::request_id::{X_REQUEST_ID, new_id};
use crate::http::middleware::server_timing::{SERVER_TIMING, total};
use crate::http::settings::ConnectionSettings;
use crate::http::state::metric_labels::malformed::{METHOD, ROUTE};
use crate::platform;
use crate::telemetry::metrics::Metrics;

/// A head that is not a valid request, or that did not arrive in time.
#[derive(Debug)]
pub(crate) struct MalformedHead {
    refusal: ApiError,
    /// True if a response can be written, because no part of an earlier response is left unsent.
    can_answer: bool,
    date: Option<String>,
    /// The parser's message, for the log.
    reason: String,
    /// When the head was rejected.
    rejected: Instant,
}

impl MalformedHead {
    /// Classifies the error with which a connection ended. Returns `None` if a request head was not the cause. `unread`
    /// contains the bytes of the head that were read. `suppressed` contains the data of hyper's response, if hyper
    /// wrote one.
    pub(crate) fn of(
        error: &hyper::Error,
        unread: &[u8],
        suppressed: Option<SuppressedAnswer>,
        settings: &ConnectionSettings,
    ) -> Option<Self> {
        let refusal = if error.is_parse_too_large() {
            too_large(settings)
        } else if error.is_parse_version_h2() {
            ApiError::invalid("HTTP/2 is not supported; use HTTP/1.1")
        } else if error.is_parse() && unread.starts_with(&TLS_RECORD) {
            ApiError::invalid("this port serves plain HTTP, not TLS; use http://")
        } else if error.is_parse() {
            ApiError::invalid(format!("the request head is not valid HTTP/1.1: {error}"))
        } else if !unread.is_empty() && is_too_slow(error) {
            ApiError::new(
                Code::RequestTimeout,
                "the request head did not arrive in time; send it without pauses",
            )
        } else {
            return None;
        };
        let is_too_slow = refusal.code == Code::RequestTimeout;
        let reason = if is_too_slow { HeadTooSlow.to_string() } else { error.to_string() };
        // hyper writes no response of its own to an HTTP/2 preface or to a slow head, so in these two cases nothing was
        // suppressed, but a response can be written.
        let can_answer = suppressed.is_some() || !error.is_parse() || error.is_parse_version_h2();
        let date = suppressed.and_then(|suppressed| suppressed.date);
        Some(Self { refusal, can_answer, date, reason, rejected: platform::now() })
    }

    /// True if a response can be written to the stream.
    pub(crate) fn can_answer(&self) -> bool {
        self.can_answer
    }

    /// Counts and logs the head, and returns the bytes of the response to it.
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

    /// Returns the bytes of the response, with the same header fields that the layers of the router would set.
    fn answer(&self, id: &str) -> Vec<u8> {
        let body = self.refusal.to_body(id);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(
            X_REQUEST_ID,
            HeaderValue::from_str(id).expect("an id holds only letters, digits and ._:-"),
        );
        let date = self.date.clone().unwrap_or_else(|| http_date(OffsetDateTime::now_utc()));
        if let Ok(date) = date.parse() {
            headers.insert(header::DATE, date);
        }
        headers.insert(SERVER_TIMING, total(platform::elapsed(self.rejected)));
        set_security_headers(&mut headers);
        headers
            .extend(self.refusal.clone().close_connection().into_response().into_parts().0.headers);
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

/// Formats a time as the `date` field has it (RFC 9110, section 5.6.7).
fn http_date(now: OffsetDateTime) -> String {
    // Formatting fails only for years before 1900 and above 9999. The time zone is the only difference to RFC 2822.
    let date = now.format(&Rfc2822).unwrap_or_default();
    date.replace("+0000", "GMT")
}

/// The first bytes of a TLS handshake record.
const TLS_RECORD: [u8; 2] = [0x16, 0x03];

fn too_large(settings: &ConnectionSettings) -> ApiError {
    let (fields, bytes) = (settings.max_headers, settings.max_head_bytes);
    ApiError::new(
        Code::HeadTooLarge,
        format!(
            "a request head may have at most {fields} fields and {bytes} bytes; send fewer or shorter fields"
        ),
    )
}

/// True if one of the two timeouts for a head has expired: that of [`TimedStream`](super::connection::TimedStream) or
/// that of hyper.
fn is_too_slow(error: &hyper::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let of_stream = causes.any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        matches!(inner, Some(inner) if inner.is::<HeadTooSlow>())
    });
    of_stream || error.is_timeout()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_has_the_format_of_http() {
        let time = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
