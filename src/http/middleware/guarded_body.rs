//! A response body that keeps a guard alive until the body is dropped. So a guard that counts or times an answer lives
//! as long as the answer is being sent. `server` and `middleware::observe` use it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// A value that lives as long as a response body.
pub(crate) trait BodyGuard {
    /// Called when the last byte has been passed on. Not called if the answer is abandoned before. May be called more
    /// than once.
    fn ended(&mut self) {}
}

/// A response body and its guard.
pub(crate) struct GuardedBody<G> {
    body: Body,
    guard: G,
}

impl<G: BodyGuard> GuardedBody<G> {
    /// Keeps `guard` alive as long as `body`.
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
