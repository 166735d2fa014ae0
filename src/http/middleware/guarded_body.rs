//! A response body that keeps a guard alive until the body is dropped. A guard can thus count or time a response until
//! it has been sent. `server` and `middleware::observe` use this.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// A value that lives as long as a response body.
pub(crate) trait BodyGuard {
    /// Called when the last byte of the body has been passed on; may be called more than once. Not called if the body
    /// is dropped before its end.
    fn ended(&mut self) {}
}

/// A response body and its guard.
pub(crate) struct GuardedBody<G> {
    body: Body,
    guard: G,
}

impl<G: BodyGuard> GuardedBody<G> {
    /// Creates a body that keeps `guard` alive as long as `body`.
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
