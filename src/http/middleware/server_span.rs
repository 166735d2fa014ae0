//! The span of the server for a request, and its attributes, by the HTTP semantic conventions of OpenTelemetry. `observe`
//! begins and ends it.
//!
//! Traced are the requests that run something: those with the method POST to a known route. Health, metrics, documents
//! and pages are requested with GET, by machines that would fill the collector. Attributes never hold texts, pictures,
//! query strings or keys.

use std::borrow::Cow;

use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version, header};

use crate::http::access::client::ClientAddress;
use crate::http::context::{Notes, RequestContext};
use crate::http::state::HttpState;
use crate::telemetry::trace::{
    Attribute, Failure, Incoming, ServerSpan, SpanId, TraceId, TraceParent, Tracer, Value,
};

pub(crate) const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace of a request.
pub(crate) enum RequestSpan {
    /// The server begins or continues a trace, which may be recorded.
    Traced(ServerSpan, Option<Head>),
    /// Tracing is off, or the route is not traced. The id is that of the client's trace, for the log.
    Untraced(Option<TraceId>),
}

/// The attributes that the head of a traced request has. The values share the memory of the header fields.
pub(crate) struct Head {
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    version: Version,
    is_tls: bool,
    client: Option<ClientAddress>,
}

/// How a request ended.
pub(crate) struct Ended<'a> {
    pub(crate) route: &'a str,
    pub(crate) method: &'static str,
    /// Status of the response, if there was one.
    pub(crate) status: Option<u16>,
    /// Why the request failed; `None` if it did not.
    pub(crate) failure: Option<Failure>,
    /// True if the client left before the end of the response.
    pub(crate) is_cancelled: bool,
    pub(crate) context: &'a RequestContext,
}

impl RequestSpan {
    /// Begins the span, and returns the context below which the other spans of the request are recorded.
    pub(crate) fn begin(
        state: &HttpState,
        request: &Request,
        context: RequestContext,
    ) -> (Self, RequestContext) {
        let headers = request.headers();
        let parent = parent(headers);
        let is_traced =
            request.method() == Method::POST && request.extensions().get::<MatchedPath>().is_some();
        let Some(tracer) = state.tracer().filter(|_| is_traced) else {
            return (Self::Untraced(parent.map(|parent| parent.trace_id)), context);
        };
        let span = begin(tracer, headers, parent, &context);
        let spans = span.spans();
        let head = spans.is_recorded().then(|| Head {
            host: headers.get(header::HOST).cloned(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            version: request.version(),
            is_tls: state.settings().tls.is_some(),
            client: request
                .extensions()
                .get::<ClientAddress>()
                .copied()
                .filter(|_| state.settings().access_log.client_ip),
        });
        (Self::Traced(span, head), context.below(spans))
    }

    /// Returns the id of the trace, for the log.
    pub(crate) fn trace_id(&self) -> Option<TraceId> {
        match self {
            Self::Traced(span, _) => Some(span.trace_id()),
            Self::Untraced(id) => *id,
        }
    }

    /// Returns the id of the server's span, for the log.
    pub(crate) fn span_id(&self) -> Option<SpanId> {
        match self {
            Self::Traced(span, _) => Some(span.span_id()),
            Self::Untraced(_) => None,
        }
    }

    /// Sets the field `traceresponse`.
    pub(crate) fn put_field<B>(&self, response: &mut Response<B>) {
        if let Self::Traced(span, _) = self
            && let Ok(value) = HeaderValue::from_str(&span.traceresponse())
        {
            response.headers_mut().insert(TRACERESPONSE, value);
        }
    }

    /// Ends the span.
    pub(crate) fn finish(&self, ended: &Ended<'_>, notes: &Notes) {
        if let Self::Traced(span, Some(head)) = self {
            span.finish(|| {
                let name = Cow::Owned(format!("{} {}", ended.method, ended.route));
                (name, attributes(head, ended, notes), ended.failure)
            });
        }
    }
}

/// Returns the client's span; `None` if there is no field, more than one, or a malformed one.
fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut fields = headers.get_all(TRACEPARENT).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return None };
    TraceParent::parse(field.to_str().ok()?)
}

fn begin(
    tracer: &Tracer,
    headers: &HeaderMap,
    parent: Option<TraceParent>,
    context: &RequestContext,
) -> ServerSpan {
    let fields = headers.get_all(TRACESTATE).iter().filter_map(|field| field.to_str().ok());
    let fields: Vec<&str> = fields.collect();
    // Several fields are one list.
    let joined = (fields.len() > 1).then(|| fields.join(","));
    let state = joined.as_deref().or(fields.first().copied());
    tracer.begin(Incoming { parent, state, arrived: context.arrived })
}

fn attributes(head: &Head, ended: &Ended<'_>, notes: &Notes) -> Vec<Attribute> {
    let mut all = vec![
        ("http.request.method", Value::Name(ended.method)),
        ("http.route", Value::text(ended.route)),
        // No traced route has parameters, so its path is the route.
        ("url.path", Value::text(ended.route)),
        ("url.scheme", Value::Name(if head.is_tls { "https" } else { "http" })),
        ("network.protocol.version", Value::Name(version(head.version))),
        ("blip.request_id", Value::text(&ended.context.id)),
    ];
    let authority = head.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = authority {
        all.push(("server.address", Value::text(authority.host())));
        if let Some(port) = authority.port_u16() {
            all.push(("server.port", Value::Count(port.into())));
        }
    }
    if let Some(agent) = head.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        all.push(("user_agent.original", Value::text(agent)));
    }
    if let Some(client) = head.client.and_then(|client| client.0) {
        all.push(("client.address", Value::Text(client.to_string())));
    }
    if let Some(status) = ended.status {
        all.push(("http.response.status_code", Value::Count(status.into())));
    }
    if ended.is_cancelled {
        all.push(("blip.cancelled", Value::Bool(true)));
    }
    all.extend(notes.task_name.map(|task| ("blip.task", Value::Name(task))));
    all.extend(notes.model.as_ref().map(|model| ("blip.model", Value::text(model))));
    let counts = [
        ("http.request.body.size", notes.bytes_in as usize),
        ("blip.inputs", notes.inputs),
        ("blip.tokens", notes.tokens),
        ("blip.cached_images", notes.cached_images),
    ];
    all.extend(
        counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name, count.into())),
    );
    all
}

fn version(version: Version) -> &'static str {
    if version == Version::HTTP_10 { "1.0" } else { "1.1" }
}
