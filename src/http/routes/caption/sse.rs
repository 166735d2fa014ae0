//! Sends a caption stream as server-sent events: `delta` events while the text is generated, then one `done` or `error`
//! event. `routes::caption` calls this.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Serialize;

use super::stream::{CaptionPart, CaptionStream};
use crate::http::context::RequestContext;

/// Interval of keep-alive comments. Proxies close idle connections, most of them after 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Writes the response of a stream.
pub(crate) fn response(stream: CaptionStream, context: RequestContext) -> Response {
    let events = stream::unfold((stream, context), |(mut stream, context)| async {
        let event = match stream.next().await? {
            CaptionPart::Delta(delta) => event("delta", &delta),
            CaptionPart::Done(done) => event("done", &done),
            CaptionPart::Failed(error) => event("error", &error.to_problem(&context.id)),
        };
        Some((Ok::<_, Infallible>(event), (stream, context)))
    });
    respond(events)
}

/// Writes a response of server-sent events.
pub(crate) fn respond(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(alive).into_response();
    // nginx buffers answers unless they say this.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Builds an event whose data is one line of JSON.
fn event<T: Serialize>(name: &str, data: &T) -> Event {
    let json = serde_json::to_string(data).expect("events hold only strings and numbers");
    Event::default().event(name).data(json)
}
