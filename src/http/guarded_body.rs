//! An answer's body that holds something until it is dropped: what counts or times an answer lives as long as the
//! answer is being sent. `server` and `middleware::observe` use it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What a body holds.
pub(crate) trait BodyGuard {
    /// The last byte has been handed on; not called for an answer that is given up before.
    fn ended(&mut self) {}
}

/// A body and its guard.
pub(crate) struct GuardedBody<G> {
    body: Body,
    guard: G,
}

impl<G: BodyGuard> GuardedBody<G> {
    /// Holds `guard` as long as the body lives.
    pub(crate) fn new(body: Body, mut guard: G) -> Self {
        if body.is_end_stream() {
            guard.ended();
        }
        Self { body, guard }
    }
}

impl<G: BodyGuard + Unpin> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.guard.ended();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
