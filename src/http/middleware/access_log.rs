//! The access log: one line per request. It never contains image bytes, texts, query strings or secrets.
//!
//! - INFO: successful requests; the settings can limit them to every n-th request.
//! - WARN: rejected requests (4xx), up to a maximum number per second.
//! - ERROR: failures of the server (5xx).
//! - DEBUG: probes and scrapes, which come periodically and would hide the other requests.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::server_timing::milliseconds;
use crate::http::access::is_open;
use crate::http::context::RequestContext;
use crate::http::settings::AccessLogSettings;
use crate::platform;
use crate::telemetry::trace::{SpanId, TraceId};

/// The access log, which decides which requests are logged and writes their lines.
pub(crate) struct AccessLog {
    settings: AccessLogSettings,
    successes: AtomicU64,
    refusals: Mutex<Second>,
}

/// What the access log needs to know about a finished request.
pub(crate) struct Finished<'a> {
    pub(crate) context: &'a RequestContext,
    pub(crate) route: &'a str,
    pub(crate) method: &'static str,
    /// HTTP status; 499 if the client disconnected.
    pub(crate) status: u16,
    /// A problem code, `ok`, or `client_closed`.
    pub(crate) code: &'static str,
    /// True if the response tells a probe that the server is not ready. Such a response does not count as a failed
    /// request.
    pub(crate) probe: bool,
    pub(crate) client: Option<IpAddr>,
    pub(crate) trace_id: Option<TraceId>,
    /// Id of the server's span, if the request is traced.
    pub(crate) span_id: Option<SpanId>,
}

/// What the access log needs to know about a request head that was rejected before it reached the router. `malformed`
/// creates this value.
pub(crate) struct RefusedHead<'a> {
    pub(crate) id: &'a str,
    pub(crate) route: &'static str,
    pub(crate) method: &'static str,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    /// What is wrong with the head, as the parser words it.
    pub(crate) problem: &'a str,
    pub(crate) peer: SocketAddr,
}

/// Counts of rejected requests: those logged in the current second, and those dropped since the last log line. The
/// limit on log lines per second needs both counts.
struct Second {
    began: Instant,
    logged: u32,
    suppressed: u64,
}

impl AccessLog {
    /// Creates a log that has counted no requests yet.
    pub(crate) fn new(settings: AccessLogSettings) -> Self {
        let second = Second { began: platform::now(), logged: 0, suppressed: 0 };
        Self { settings, successes: AtomicU64::new(0), refusals: Mutex::new(second) }
    }

    /// Writes the line of a request, unless sampling or the limit on rejected requests drops it.
    pub(crate) fn write(&self, request: &Finished<'_>) {
        let notes = request.context.notes();
        let task = notes.task.unwrap_or_default();
        let client_ip = request.client.filter(|_| self.settings.client_ip);
        let image = notes.image;
        // This is a macro because `tracing` needs the level at compile time. With the macro, one list of fields serves
        // all four levels.
        macro_rules! line {
            ($level:ident, $message:literal $(, $suppressed:ident)?) => {
                tracing::$level!(
                    target: "access",
                    request_id = &*request.context.id,
                    trace_id = request.trace_id.map(tracing::field::display),
                    span_id = request.span_id.map(tracing::field::display),
                    route = request.route,
                    method = request.method,
                    status = request.status,
                    reason = request.code,
                    dur_ms = milliseconds(request.context.elapsed()),
                    queue_ms = milliseconds(task.queue),
                    fetch_ms = notes.fetch.map(milliseconds),
                    decode_ms = milliseconds(notes.decode.unwrap_or_default()),
                    infer_ms = milliseconds(task.vision + task.text),
                    bytes_in = notes.bytes_in,
                    model.id = notes.model.as_deref(),
                    batch.size = notes.inputs,
                    format = image.map(|image| image.format.name()),
                    w = image.map(|image| image.width),
                    h = image.map(|image| image.height),
                    tokens = notes.tokens,
                    cached_images = notes.cached_images,
                    client_ip = client_ip.map(tracing::field::display),
                    key_id = notes.owner.as_ref().map(|owner| &*owner.id),
                    $($suppressed,)?
                    $message
                )
            };
        }
        let by_the_clock = is_open(request.route) || request.route == "/metrics";
        match request.status {
            _ if request.probe => line!(debug, "probe answered: the server is not ready"),
            ..400 if by_the_clock => line!(debug, "probe or scrape answered"),
            ..400 => {
                if self.samples() {
                    line!(info, "request answered");
                }
            }
            400..500 => {
                if let Some(suppressed) = self.admits_refusal(platform::now()) {
                    line!(warn, "request refused", suppressed);
                }
            }
            _ => line!(error, "request failed"),
        }
    }

    /// Writes the line of a rejected head, unless the limit on rejected requests drops it.
    pub(crate) fn write_refused_head(&self, head: &RefusedHead<'_>) {
        let Some(suppressed) = self.admits_refusal(platform::now()) else { return };
        let client_ip = self.settings.client_ip.then(|| tracing::field::display(head.peer.ip()));
        tracing::warn!(
            target: "access",
            request_id = head.id,
            route = head.route,
            method = head.method,
            status = head.status,
            reason = head.code,
            problem = head.problem,
            client_ip,
            suppressed,
            "request refused"
        );
    }

    fn samples(&self) -> bool {
        let every = self.settings.sample_every;
        every > 0 && self.successes.fetch_add(1, Ordering::Relaxed).is_multiple_of(every)
    }

    /// Decides whether to log a rejected request. If so, returns the number of rejected requests that were dropped
    /// since the last logged one; otherwise `None`.
    fn admits_refusal(&self, now: Instant) -> Option<u64> {
        let mut second = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(second.began) >= Duration::from_secs(1) {
            (second.began, second.logged) = (now, 0);
        }
        if second.logged >= self.settings.max_refusals_per_second {
            second.suppressed += 1;
            return None;
        }
        second.logged += 1;
        Some(std::mem::take(&mut second.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(sample_every: u64, max_refusals_per_second: u32) -> AccessLog {
        AccessLog::new(AccessLogSettings {
            sample_every,
            client_ip: false,
            max_refusals_per_second,
        })
    }

    #[test]
    fn every_nth_success_is_logged_and_zero_logs_none() {
        let third = log(3, 0);
        let sampled: Vec<bool> = (0..6).map(|_| third.samples()).collect();
        assert_eq!(sampled, [true, false, false, true, false, false]);
        assert!(!log(0, 0).samples());
    }

    #[test]
    fn refusals_above_the_rate_are_counted_into_the_next_line() {
        let log = log(1, 2);
        let start = Instant::now();
        let admitted: Vec<_> = (0..4).map(|_| log.admits_refusal(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None]);
        assert_eq!(log.admits_refusal(start + Duration::from_secs(2)), Some(2));
    }
}
