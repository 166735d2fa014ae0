//! A collector of traces: takes OTLP over HTTP on a port of its own, and keeps what it was sent.
//!
//! It has its own thread and runtime, because a test blocks its thread while the exporter sends the last spans.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// How the collector answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    /// Number of exports that are answered with 503 first.
    pub(crate) unavailable: usize,
    /// Number of spans of each export that it rejects.
    pub(crate) rejected: i64,
}

/// A running collector.
pub(crate) struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    exports: Vec<(HeaderMap, ExportTraceServiceRequest)>,
    refused: usize,
}

impl Collector {
    /// A collector that takes everything.
    pub(crate) fn start() -> Self {
        Self::behaving(Behaviour::default())
    }

    /// A collector that behaves like this.
    pub(crate) fn behaving(behaviour: Behaviour) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let state = Arc::clone(&seen);
        let answer = move |headers: HeaderMap, body: Bytes| {
            let answer = state.lock().unwrap().take(behaviour, headers, &body);
            std::future::ready(answer)
        };
        let router = Router::new().route("/v1/traces", post(answer));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { address, seen }
    }

    /// Where traces are sent.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}/v1/traces", self.address)
    }

    /// All spans that were taken.
    pub(crate) fn spans(&self) -> Spans {
        let seen = self.seen.lock().unwrap();
        let resources = seen.exports.iter().flat_map(|(_, export)| &export.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        Spans(scopes.flat_map(|scope| scope.spans.clone()).collect())
    }

    /// The attributes of the resource in the first export.
    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        let seen = self.seen.lock().unwrap();
        let resource = seen.exports[0].1.resource_spans[0].resource.clone().unwrap();
        texts(&resource.attributes)
    }

    /// The header fields of the exports.
    pub(crate) fn heads(&self) -> Vec<HeaderMap> {
        self.seen.lock().unwrap().exports.iter().map(|(head, _)| head.clone()).collect()
    }

    /// Number of exports that were answered with 503.
    pub(crate) fn refused(&self) -> usize {
        self.seen.lock().unwrap().refused
    }
}

impl Seen {
    fn take(
        &mut self,
        behaviour: Behaviour,
        headers: HeaderMap,
        body: &[u8],
    ) -> (StatusCode, Vec<u8>) {
        if self.refused < behaviour.unavailable {
            self.refused += 1;
            return (StatusCode::SERVICE_UNAVAILABLE, Vec::new());
        }
        let mut unpacked = Vec::new();
        if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
            GzDecoder::new(body).read_to_end(&mut unpacked).unwrap();
        } else {
            unpacked.extend_from_slice(body);
        }
        self.exports.push((headers, ExportTraceServiceRequest::decode(&unpacked[..]).unwrap()));
        let partial = ExportTracePartialSuccess {
            rejected_spans: behaviour.rejected,
            error_message: "too old".to_owned(),
        };
        let partial_success = (behaviour.rejected > 0).then_some(partial);
        let answer = ExportTraceServiceResponse { partial_success };
        (StatusCode::OK, answer.encode_to_vec())
    }
}

/// Spans, in the order in which they arrived.
#[derive(Debug)]
pub(crate) struct Spans(pub(crate) Vec<Span>);

impl Spans {
    /// The only span with this name.
    #[track_caller]
    pub(crate) fn one(&self, name: &str) -> &Span {
        let found = self.named(name);
        assert_eq!(found.len(), 1, "{name} among {:?}", self.names());
        found[0]
    }

    /// All spans with this name.
    pub(crate) fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// The names of all spans, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// The names of the spans directly below `parent`, sorted.
    pub(crate) fn below(&self, parent: &Span) -> Vec<&str> {
        let children = self.0.iter().filter(|span| span.parent_span_id == parent.span_id);
        let mut names: Vec<&str> = children.map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// Checks that every span belongs to the trace of `root`, has a parent in it, and lies within its parent's time.
    #[track_caller]
    pub(crate) fn assert_nested_below(&self, root: &Span) {
        for span in &self.0 {
            assert_eq!(span.trace_id, root.trace_id, "{}", span.name);
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{}", span.name);
            if span.span_id == root.span_id {
                continue;
            }
            let parent = self.0.iter().find(|other| other.span_id == span.parent_span_id);
            let parent = parent.unwrap_or_else(|| panic!("{} has no parent", span.name));
            assert!(span.start_time_unix_nano >= parent.start_time_unix_nano, "{}", span.name);
            assert!(span.end_time_unix_nano <= parent.end_time_unix_nano, "{}", span.name);
        }
    }
}

/// The attributes of a span, as texts.
pub(crate) fn attributes(span: &Span) -> BTreeMap<String, String> {
    texts(&span.attributes)
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().unwrap().value.as_ref() {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => panic!("{}: {other:?}", attribute.key),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}
