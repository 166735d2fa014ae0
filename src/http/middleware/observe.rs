//! Observability of requests: counts and times every request until the last byte of its response has been passed to the
//! connection, then logs the request once, and ends its trace.
//!
//! Metric labels come from closed sets, so that their cardinality is bounded: the matched route or "unmatched", a known
//! method or "other", and the codes of `error`. A request counts as status 499 if the client disconnects before the end
//! of the response.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::access_log::{AccessLog, Finished};
use super::guarded_body::{BodyGuard, GuardedBody};
use super::problem::{ErrorCode, KeepBody};
use super::server_span::{Ended, RequestSpan};
use crate::http::access::client::ClientAddress;
use crate::http::context::RequestContext;
use crate::http::error::Code;
use crate::http::state::requests_in_flight::RequestInFlight;
use crate::http::state::{HttpState, Readiness};
use crate::telemetry::trace::Failure;

/// Status under which a request counts whose client left.
const CLIENT_CLOSED: u16 = 499;

/// State of the `observe` layer.
#[derive(Clone)]
pub(crate) struct Observer {
    /// Provides the metrics, and the reason why the server is not ready.
    pub(crate) state: HttpState,
    /// Logs each request once it has ended.
    pub(crate) log: Arc<AccessLog>,
}

/// Creates a [`Record`] of the request, and keeps it alive until the response has been sent.
pub(crate) async fn observe(
    State(observer): State<Observer>,
    Extension(context): Extension<RequestContext>,
    mut request: Request,
    next: Next,
) -> Response {
    let (span, context) = RequestSpan::begin(&observer.state, &request, context);
    if context.spans.is_recorded() {
        request.extensions_mut().insert(context.clone());
    }
    let mut record = Record {
        _in_flight: observer.state.requests().begin(),
        observer,
        context,
        route: request.extensions().get::<MatchedPath>().cloned(),
        method: method_label(request.method()),
        client: request.extensions().get::<ClientAddress>().and_then(|client| client.0),
        span,
        answer: None,
        probe: false,
        // The answer to HEAD has no body that could be cut.
        complete: request.method() == Method::HEAD,
    };
    let mut response = next.run(request).await;
    let extensions = response.extensions();
    record.probe = extensions.get::<KeepBody>().is_some();
    let code = match extensions.get::<ErrorCode>() {
        Some(refused) => refused.0.name(),
        None if record.probe => unready_code(&record.observer.state).name(),
        None => "ok",
    };
    record.answer = Some((response.status(), code));
    record.span.put_field(&mut response);
    response.map(|body| Body::new(GuardedBody::new(body, record)))
}

/// For a server that is not ready, returns the error code with which it would reject an inference request now.
fn unready_code(state: &HttpState) -> Code {
    if state.readiness() == Readiness::Draining { Code::ShuttingDown } else { Code::NotReady }
}

/// Data about a request in flight. Dropping a record counts and logs its request.
struct Record {
    _in_flight: RequestInFlight,
    observer: Observer,
    context: RequestContext,
    route: Option<MatchedPath>,
    method: &'static str,
    client: Option<IpAddr>,
    span: RequestSpan,
    /// Status and code of the response, once its head is known.
    answer: Option<(StatusCode, &'static str)>,
    /// True if the response tells a probe that the server is not ready.
    probe: bool,
    /// True once the last byte of the response has been passed to the connection.
    complete: bool,
}

impl Drop for Record {
    fn drop(&mut self) {
        let notes = self.context.notes();
        let (status, code) = match (self.answer, notes.stream_error) {
            (Some((status, _)), Some(code)) => (status.as_u16(), code.name()),
            (Some((status, code)), None) if self.complete => (status.as_u16(), code),
            (Some(_) | None, _) => (CLIENT_CLOSED, "client_closed"),
        };
        let route = self.route.as_ref().map_or("unmatched", MatchedPath::as_str);
        let metrics = self.observer.state.metrics();
        let labels = [route, self.method, &status.to_string(), code];
        metrics.http_requests_total.with_label_values(&labels).inc();
        let seconds = self.context.elapsed().as_secs_f64();
        metrics.http_request_duration_seconds.with_label_values(&[route]).observe(seconds);
        if notes.bytes_in > 0 {
            metrics.http_request_body_bytes.observe(notes.bytes_in as f64);
        }
        if code != "ok" {
            metrics.request_failures_total.with_label_values(&[code]).inc();
        }
        self.observer.log.write(&Finished {
            context: &self.context,
            route,
            method: self.method,
            status,
            code,
            probe: self.probe,
            client: self.client,
            trace_id: self.span.trace_id(),
            span_id: self.span.span_id(),
        });
        let failed = notes.stream_error.map_or(status, |code| code.status().as_u16());
        let failure = (code != "ok").then_some(Failure { code, is_error: failed >= 500 });
        self.span.finish(
            &Ended {
                route,
                method: self.method,
                status: self.answer.map(|(status, _)| status.as_u16()),
                failure,
                is_cancelled: status == CLIENT_CLOSED,
                context: &self.context,
            },
            &notes,
        );
    }
}

impl BodyGuard for Record {
    fn ended(&mut self) {
        self.complete = true;
    }
}

/// Returns the method, or "other" if it is unknown, since clients can send any method.
fn method_label(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_share_one_label() {
        assert_eq!(method_label(&Method::POST), "POST");
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
