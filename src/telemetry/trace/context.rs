//! The trace context of a request: its ids and flags, and the header fields that carry them.
//!
//! `traceparent` and `tracestate` are those of W3C Trace Context (Recommendation, Level 1, and the flag for random ids of
//! Level 2). `traceresponse` is the response field of an editor's draft of the same group, "Trace Context HTTP Response
//! Headers Format" (repository w3c/trace-context), which is no recommendation. Its form is
//! `00-<trace-id>-<child-id>-<flags>`, where the child id is that of the server's span.

use std::fmt;

/// The flag of a trace that is recorded by the sender.
const SAMPLED: u8 = 0x01;
/// The flag of a trace whose id is random (Level 2).
const RANDOM: u8 = 0x02;

/// Id of a trace; never 0. It is written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub(super) u128);

/// Id of a span; never 0. It is written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub(super) u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The flags of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags(u8);

impl Flags {
    /// The flags of a new trace, whose id is random.
    pub(super) fn new(is_sampled: bool) -> Self {
        Self(RANDOM).with_sampled(is_sampled)
    }

    pub(super) fn with_sampled(self, is_sampled: bool) -> Self {
        Self(if is_sampled { self.0 | SAMPLED } else { self.0 & !SAMPLED })
    }

    #[cfg(test)]
    fn is_sampled(self) -> bool {
        self.0 & SAMPLED != 0
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }
}

/// The parent of a request's span, as the client sent it in `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Id of the trace to which the request belongs.
    pub trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) flags: Flags,
}

impl TraceParent {
    /// Parses a `traceparent` field: `<version>-<trace-id>-<parent-id>-<flags>`, in lower-case hexadecimal digits. A
    /// later version than 00 may have further fields. Returns `None` for a malformed field, which must be ignored.
    #[must_use]
    pub fn parse(field: &str) -> Option<Self> {
        let mut parts = field.splitn(5, '-');
        let mut part = |digits: usize| hexadecimal(parts.next()?, digits);
        let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_forbidden = version == 0xff || trace_id == 0 || span_id == 0;
        if is_forbidden || version == 0 && parts.next().is_some() {
            return None;
        }
        Some(Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(u64::try_from(span_id).ok()?),
            // Flags without a meaning in this version must not be passed on.
            flags: Flags(u8::try_from(flags).ok()? & (SAMPLED | RANDOM)),
        })
    }
}

/// Returns the number that these lower-case hexadecimal digits write; `None` unless there are `digits` of them.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_accepted = text.len() == digits && text.bytes().all(is_digit);
    is_accepted.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Writes the field `traceresponse`.
pub(super) fn traceresponse(trace: TraceId, span: SpanId, flags: Flags) -> String {
    format!("00-{trace}-{span}-{:02x}", flags.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_well_formed_field_is_read_and_written_back() {
        let parent = TraceParent::parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(parent.trace_id.to_string(), TRACE);
        assert_eq!(parent.span_id.to_string(), SPAN);
        assert!(parent.flags.is_sampled());
        let written = traceresponse(parent.trace_id, parent.span_id, parent.flags);
        assert_eq!(written, format!("00-{TRACE}-{SPAN}-01"));
        assert!(!TraceParent::parse(&format!("00-{TRACE}-{SPAN}-02")).unwrap().flags.is_sampled());
        // Unknown flags and the fields of later versions are not passed on.
        let later = TraceParent::parse(&format!("cc-{TRACE}-{SPAN}-ff-what-the-future-brings"));
        assert_eq!(later.unwrap().flags.bits(), 0x03);
    }

    #[test]
    fn a_malformed_field_is_ignored() {
        let zeros = "0".repeat(32);
        for field in [
            String::new(),
            "nonsense".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(TraceParent::parse(&field), None, "{field}");
        }
    }
}
