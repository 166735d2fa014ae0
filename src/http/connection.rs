//! The clock of one connection: how long a head may take, how long nothing may be read or written.
//!
//! hyper's own header timeout runs from the moment it could read a head, so it also ends connections that are
//! merely idle. Here it bounds the pause between two requests (`keep_alive`), and [`TimedStream`] bounds the head
//! itself from its first byte. A head whose first bytes came during the previous request has only the longer
//! bound.
//!
//! A refusal that was decided before its request's body had been read ends the connection; [`TimedStream`] then takes
//! in what the client still sends, so that the refusal reaches it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The client's address, as an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// How long a connection reads on after an answer that came before its request's end, and how much. Closing at once
/// would reset it, and the client, still sending, would lose the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 32 << 20;

/// What a connection is doing; shared by its stream and its service.
#[derive(Debug, Clone, Default)]
pub(crate) struct Activity(Arc<Doing>);

#[derive(Debug, Default)]
struct Doing {
    state: AtomicU8,
    /// A request's body was given up before its end: nothing else can be read from this connection.
    body_left: AtomicBool,
}

const HEAD: u8 = 0;
const REQUEST: u8 = 1;
const IDLE: u8 = 2;

impl Activity {
    /// A head has been read; until the guard is dropped the request is being answered.
    pub(crate) fn begin_request(&self) -> RequestGuard {
        self.0.state.store(REQUEST, Ordering::Release);
        RequestGuard(self.clone())
    }

    /// The request's body, which tells when it is given up before its end.
    pub(crate) fn watch_body(&self, body: Incoming) -> Body {
        Body::new(WatchedBody { body, activity: self.clone(), ended: false })
    }

    /// True when a request's body was given up before its end.
    pub(crate) fn has_body_left(&self) -> bool {
        self.0.body_left.load(Ordering::Acquire)
    }

    fn is(&self, state: u8) -> bool {
        self.0.state.load(Ordering::Acquire) == state
    }
}

/// A request being answered; the connection is idle when it is dropped.
#[derive(Debug)]
pub(crate) struct RequestGuard(Activity);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.0.state.store(IDLE, Ordering::Release);
    }
}

/// A request's body on its way to a handler.
struct WatchedBody {
    body: Incoming,
    activity: Activity,
    ended: bool,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.ended |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.activity.0.body_left.store(true, Ordering::Release);
        }
    }
}

/// A stream that gives up on clients that take too long.
pub(crate) struct TimedStream<S> {
    inner: S,
    activity: Activity,
    head_timeout: Duration,
    write_timeout: Duration,
    /// Runs while a head is being read.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client does not take what is written.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Runs from the end of what is written while the rest of a body is discarded.
    linger_timer: Option<Pin<Box<Sleep>>>,
    lingered_bytes: u64,
}

impl<S> TimedStream<S> {
    /// A new connection: its first head is awaited from now on.
    pub(crate) fn new(inner: S, activity: Activity, head: Duration, write: Duration) -> Self {
        Self {
            inner,
            activity,
            head_timeout: head,
            write_timeout: write,
            head_timer: Some(Box::pin(sleep(head))),
            write_timer: None,
            linger_timer: None,
            lingered_bytes: 0,
        }
    }

    /// Ends the wait for a head that takes too long.
    fn poll_head_timer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.activity.is(HEAD) {
            self.head_timer = None;
            return Poll::Pending;
        }
        let timeout = self.head_timeout;
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the request's head took too long",
        )))
    }

    /// Passes a write's result on, or ends it when the client takes nothing for too long.
    fn poll_write_timer<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_timer = None;
            return result;
        }
        let timeout = self.write_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> TimedStream<S> {
    /// Discards what still arrives, until the client is done or has had its time.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.linger_timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 16 << 10];
        while self.lingered_bytes < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            self.lingered_bytes += buffer.filled().len() as u64;
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_head_timer(context);
        }
        if buffer.filled().len() > before && self.activity.is(IDLE) {
            self.activity.0.state.store(HEAD, Ordering::Release);
            let timeout = self.head_timeout;
            self.head_timer = Some(Box::pin(sleep(timeout)));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.poll_write_timer(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(context);
        self.poll_write_timer(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger_timer.is_none() {
            let result = Pin::new(&mut self.inner).poll_shutdown(context);
            ready!(self.poll_write_timer(context, result))?;
            if !self.activity.has_body_left() {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.poll_write_timer(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
