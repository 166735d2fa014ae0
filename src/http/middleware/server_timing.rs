//! Sets the `server-timing` field: the time that each stage of a request took, in milliseconds. Stages that the request
//! did not go through are left out. For a streamed response, the field has only the times that are known when the
//! stream begins; the last event of the stream has the rest.

use std::fmt::Write;
use std::time::Duration;

use axum::extract::{Extension, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::context::RequestContext;

pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Sets the field from the notes in the request's context.
pub(crate) async fn server_timing(
    Extension(context): Extension<RequestContext>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let value = HeaderValue::from_str(&header_value(&context)).expect("names and numbers only");
    response.headers_mut().insert(SERVER_TIMING, value);
    response
}

/// Returns the value of the field for an answer that has only a total. `malformed` calls this, because its responses pass
/// through no layer.
pub(crate) fn total(time: Duration) -> HeaderValue {
    let value = format!("total;dur={:.3}", milliseconds(time));
    HeaderValue::from_str(&value).expect("names and numbers only")
}

fn header_value(context: &RequestContext) -> String {
    let notes = context.notes();
    let task = notes.task;
    let total = (!notes.streaming).then(|| context.elapsed());
    let decode =
        if notes.streaming { Some(notes.decode.unwrap_or_default()) } else { notes.decode };
    let stages = [
        ("fetch", notes.fetch),
        ("decode", decode),
        ("queue", task.map(|task| task.queue)),
        ("vision", task.map(|task| task.vision)),
        ("text", task.map(|task| task.text)),
        ("total", total),
    ];
    let mut value = String::new();
    for (name, time) in stages.into_iter().filter_map(|(name, time)| Some((name, time?))) {
        let separator = if value.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(value, "{separator}{name};dur={:.3}", milliseconds(time));
    }
    value
}

/// Converts `time` to milliseconds, rounded to a microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskTiming;

    #[test]
    fn stages_that_did_not_happen_are_left_out() {
        let context = RequestContext::new("r".into());
        assert!(header_value(&context).starts_with("total;dur="));
        context.note(|notes| {
            notes.add_fetch(Duration::from_millis(7));
            notes.add_decode(Duration::from_micros(1500));
            notes.add_task(TaskTiming { queue: Duration::from_millis(2), ..TaskTiming::default() });
        });
        let value = header_value(&context);
        let expected = "fetch;dur=7.000, decode;dur=1.500, queue;dur=2.000, vision;dur=0.000, text;dur=0.000, total";
        assert!(value.starts_with(expected), "{value}");
    }

    #[test]
    fn a_stream_leaves_its_total_to_the_last_event() {
        let context = RequestContext::new("r".into());
        context.note(|notes| notes.streaming = true);
        assert_eq!(header_value(&context), "decode;dur=0.000");
    }
}
