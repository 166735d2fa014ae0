//! The clock of one connection: how long a head may take, how long nothing may be read or written.
//!
//! hyper's own header timeout runs from the moment it could read a head, so it also ends connections that are
//! merely idle. Here it bounds the pause between two requests (`keep_alive`), and [`TimedStream`] bounds the head
//! itself from its first byte. A head whose first bytes came during the previous request has only the longer
//! bound.
//!
//! A connection that closes while its client still sends (a refusal came before the end of its request, or requests
//! were sent ahead) would be reset, and its last answer lost: [`TimedStream`] takes in what still arrives.
//!
//! [`Activity`] is also what `connection_table` asks when a connection has to make room.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The client's address, as an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// How long a connection reads on after an answer that came before its request's end, and how much. Closing at once
/// would reset it, and the client, still sending, would lose the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 32 << 20;

/// Why a stream ends whose client is too slow with a head.
#[derive(Debug, thiserror::Error)]
#[error("the head of a request took too long")]
pub(crate) struct HeadTooSlow;

/// What a connection is doing; shared by its stream, its service and the table of connections.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Doing>);

#[derive(Debug)]
struct Doing {
    /// The phase in the low bits, above them its number from [`PHASES`]: one value, so that both are read together.
    phase: AtomicU64,
    /// A request was given up before its end: nothing else can be read from this connection.
    body_left: AtomicBool,
    /// The client does not take what is written at present.
    stalled: AtomicBool,
}

/// Counts the phases that connections have entered. The order of two phases is exact, which a clock does not give:
/// two of them can begin within one of its ticks.
static PHASES: AtomicU64 = AtomicU64::new(0);

/// Nothing has arrived on a new connection.
const SILENT: u64 = 0;
/// A head is arriving, or a TLS handshake.
const HEAD: u64 = 1;
/// A request is being answered, and all of its body has arrived or been given up.
const REQUEST: u64 = 2;
/// Between two requests.
const IDLE: u64 = 3;
/// A request whose body is still arriving.
const BODY: u64 = 4;

const PHASE_BITS: u32 = 3;
const PHASE: u64 = (1 << PHASE_BITS) - 1;

/// A connection that waits for its client; the one that is closed first is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    pub(crate) awaited: Awaited,
    /// The number of its phase: smaller for one that has waited longer.
    phase_number: u64,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// A request of which nothing has arrived.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
}

/// A body is not read on: its connection has to make room for others.
#[derive(Debug, thiserror::Error)]
#[error("the connection makes room for others")]
pub(crate) struct MadeRoom;

impl Default for Activity {
    /// A new connection.
    fn default() -> Self {
        let activity = Self(Arc::new(Doing {
            phase: AtomicU64::default(),
            body_left: AtomicBool::default(),
            stalled: AtomicBool::default(),
        }));
        activity.enter(SILENT);
        activity
    }
}

impl Activity {
    /// A head has been read; until the guard is dropped the request is being answered.
    pub(crate) fn begin_request(&self) -> RequestGuard {
        self.enter(REQUEST);
        RequestGuard(self.clone())
    }

    /// The first byte of a head has arrived.
    pub(crate) fn begin_head(&self) {
        self.enter(HEAD);
    }

    /// Whether the connection waits for its client, with nothing left to send.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let value = self.0.phase.load(Ordering::Acquire);
        let (phase, phase_number) = (value & PHASE, value >> PHASE_BITS);
        let awaited = match phase {
            REQUEST => return None,
            HEAD => Awaited::Head,
            BODY => Awaited::Body,
            _ => Awaited::Request,
        };
        let is_stalled = self.0.stalled.load(Ordering::Acquire);
        (!is_stalled).then_some(Waiting { awaited, phase_number })
    }

    /// Notes that what remains of the input is not read.
    pub(crate) fn leave_rest(&self) {
        self.0.body_left.store(true, Ordering::Release);
    }

    /// Notes whether the client takes what is written.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.0.stalled.store(stalled, Ordering::Release);
    }

    /// True while something is written that the client does not take.
    pub(crate) fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Acquire)
    }

    fn enter(&self, phase: u64) {
        let number = PHASES.fetch_add(1, Ordering::Relaxed);
        self.0.phase.store(number << PHASE_BITS | phase, Ordering::Release);
    }

    /// The request's body, which tells when all of it has arrived or it is given up before its end. It fails with
    /// [`MadeRoom`] once `leave` is cancelled.
    pub(crate) fn watch_body(&self, body: Incoming, leave: CancellationToken) -> Body {
        let ended = body.is_end_stream();
        if !ended {
            self.begin_body();
        }
        Body::new(WatchedBody { body, activity: self.clone(), leave, leaving: None, ended })
    }

    /// All of the head has been read, the body has not.
    pub(crate) fn begin_body(&self) {
        self.enter(BODY);
    }

    fn end_body(&self) {
        if self.phase() == BODY {
            self.enter(REQUEST);
        }
    }

    /// True when a request was given up before its end.
    pub(crate) fn has_body_left(&self) -> bool {
        self.0.body_left.load(Ordering::Acquire)
    }

    fn phase(&self) -> u64 {
        self.0.phase.load(Ordering::Acquire) & PHASE
    }
}

/// A request being answered; the connection is idle when it is dropped.
#[derive(Debug)]
pub(crate) struct RequestGuard(Activity);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.enter(IDLE);
    }
}

/// A request's body on its way to a handler.
struct WatchedBody {
    body: Incoming,
    activity: Activity,
    leave: CancellationToken,
    /// Waits for `leave`, from the first wait for the client on.
    leaving: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // What has arrived first: a body that is complete is not given up.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if frame.is_none() || self.body.is_end_stream() {
                self.ended = true;
                self.activity.end_body();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let this = &mut *self;
        let leave = || Box::pin(this.leave.clone().cancelled_owned());
        ready!(this.leaving.get_or_insert_with(leave).as_mut().poll(context));
        Poll::Ready(Some(Err(MadeRoom.into())))
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
            self.activity.leave_rest();
        }
        self.activity.end_body();
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
        if !matches!(self.activity.phase(), SILENT | HEAD) {
            self.head_timer = None;
            return Poll::Pending;
        }
        let timeout = self.head_timeout;
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, HeadTooSlow)))
    }

    /// Passes a write's result on, or ends it when the client takes nothing for too long.
    fn poll_write_timer<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.write_timer.take().is_some() {
                self.activity.set_stalled(false);
            }
            return result;
        }
        if self.write_timer.is_none() {
            self.activity.set_stalled(true);
        }
        let timeout = self.write_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> TimedStream<S> {
    /// Whether something has arrived that nobody reads any more, such as the next of several requests that a client sent
    /// at once.
    fn has_unread(&mut self, context: &mut Context<'_>) -> bool {
        let mut scratch = [0; 1];
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut self.inner).poll_read(context, &mut buffer);
        matches!(read, Poll::Ready(Ok(()))) && !buffer.filled().is_empty()
    }

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
        if buffer.filled().len() > before {
            match self.activity.phase() {
                // Its clock runs from the beginning of the connection.
                SILENT => self.activity.begin_head(),
                IDLE => {
                    self.activity.begin_head();
                    let timeout = self.head_timeout;
                    self.head_timer = Some(Box::pin(sleep(timeout)));
                }
                _ => {}
            }
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
            if !self.activity.has_body_left() && !self.has_unread(context) {
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
