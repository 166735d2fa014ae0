//! Distributed tracing: one trace per request, exported to a collector by OTLP. The OpenTelemetry crates are used in this
//! folder only; `http` sees the types that are exported here.
//!
//! ```text
//!  http: a request arrives ── Tracer::begin ─> ServerSpan (sampled or not)
//!          its parts ── ParentSpan::record, ParentSpan::open ─> spans, kept with the request
//!          its end   ── ServerSpan::finish ─> SpanQueue (bounded, never waits)
//!                                                │
//!  thread `traces`: batches ── opentelemetry-otlp ─> reqwest ─> collector
//! ```
//!
//! - `settings`: the section `[tracing]`. `resource`: what describes this process.
//! - `context`: the header fields `traceparent`, `tracestate` and `traceresponse`.
//! - `tracer`: begins traces, and decides which are sampled.
//! - `spans`: the spans of a request while it is in progress.
//! - `queue`: finished spans that wait for the exporter.
//! - `exporter`: the thread. `client`: its HTTP client. `convert`: our spans as those of the SDK.
//!
//! The SDK's `TracerProvider` and batch processor are not used. A request's spans are recorded when they are over, most
//! of them from times that the worker has measured; they are queued together, so a full queue drops whole traces; and
//! everything that is dropped is counted, which the SDK's processor does not do.
//!
//! If tracing is off, there is no [`Tracer`], no thread and no allocation.

mod client;
mod context;
mod convert;
mod exporter;
mod queue;
mod resource;
mod settings;
mod spans;
mod tracer;

pub use context::{SpanId, TraceId, TraceParent};
pub use exporter::TraceSetupError;
pub use settings::TraceSettings;
pub use spans::{Attribute, Failure, OpenSpan, ParentSpan, Value};
pub use tracer::{Incoming, LAST_EXPORT, ServerSpan, Tracer};
