//! Turns finished spans into those of the SDK, which the exporter takes. The exporter's thread does this, so that requests
//! need not.

use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::queue::FinishedTrace;
use super::spans::{FinishedSpan, TraceIdentity, Value};

/// The name under which spans are exported: that of this program and its version.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
        .with_version(env!("CARGO_PKG_VERSION"))
        .build()
}

/// Converts the spans of a trace.
pub(super) fn spans(
    trace: FinishedTrace,
    scope: &InstrumentationScope,
) -> impl Iterator<Item = SpanData> {
    let FinishedTrace { identity, spans } = trace;
    spans.into_iter().map(move |span| convert(span, &identity, scope))
}

fn convert(span: FinishedSpan, identity: &TraceIdentity, scope: &InstrumentationScope) -> SpanData {
    let span_context = SpanContext::new(
        identity.trace_id.0.into(),
        span.id.0.into(),
        TraceFlags::new(identity.flags.bits()),
        false,
        identity.state.clone(),
    );
    let mut attributes: Vec<KeyValue> =
        span.attributes.into_iter().map(|(name, value)| key_value(name, value)).collect();
    let mut status = Status::Unset;
    if let Some(failure) = span.failure {
        attributes.push(KeyValue::new("error.type", failure.code));
        if failure.is_error {
            status = Status::error("");
        }
    }
    SpanData {
        span_context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, |parent| parent.0.into()),
        parent_span_is_remote: span.is_server && span.parent.is_some(),
        span_kind: if span.is_server { SpanKind::Server } else { SpanKind::Internal },
        name: span.name,
        start_time: wall_time(span.began, identity.anchor),
        end_time: wall_time(span.ended, identity.anchor),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

fn key_value(name: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Bool(flag) => KeyValue::new(name, flag),
        Value::Count(count) => KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Number(number) => KeyValue::new(name, number),
        Value::Name(text) => KeyValue::new(name, text),
        Value::Text(text) => KeyValue::new(name, text),
    }
}

/// Converts a monotonic time to a time of day.
fn wall_time(time: Instant, (instant, system): (Instant, SystemTime)) -> SystemTime {
    match time.checked_duration_since(instant) {
        Some(later) => system.checked_add(later),
        None => system.checked_sub(instant.saturating_duration_since(time)),
    }
    .unwrap_or(system)
}
