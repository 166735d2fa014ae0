//! The timeouts of one connection ([`TimedStream`]), and what the connection is doing at the moment ([`Activity`]).
//! `server` wraps every stream in a [`TimedStream`]; `connection_table` reads the [`Activity`] when a connection must
//! close to make room for others.
//!
//! hyper's own header timeout starts as soon as hyper is ready to read a head, so it also ends connections that are
//! merely idle. Therefore `server` sets that timeout to `keep_alive`, the longest pause between two requests, and
//! [`TimedStream`] limits the time of the head itself, from its first byte. A head whose first bytes arrive during the
//! previous request is limited only by `keep_alive`.
//!
//! If a connection is closed while its client is still sending, TCP resets it, and the client loses the last response.
//! A client is still sending if its request is rejected before all of it has arrived, or if it sends further requests
//! ahead (pipelining). Therefore, before it closes, [`TimedStream`] reads and discards the input that still arrives
//! (lingering close).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::http::context::BulkConnection;
use crate::http::extract::body::ClosedToMakeRoom;
use crate::mutations::{self, Mutation};
use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Maximum time for which a closing connection discards input (lingering close). Without discarding, the connection
/// would be reset while the client is still sending, and the client would lose the response.
const LINGER: Duration = Duration::from_secs(2);
/// Maximum number of bytes that a closing connection discards.
const LINGER_BYTES: u64 = 32 << 20;

/// The error of a stream whose client takes too long to send a head.
#[derive(Debug, thiserror::Error)]
#[error("timed out reading the request head")]
pub(crate) struct HeadTooSlow;

/// What a connection is doing at the moment. The stream, the service of the connection and the connection table each
/// have a clone; all clones share one state.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<ActivityState>);

#[derive(Debug)]
struct ActivityState {
    /// The low [`PHASE_BITS`] bits hold the phase. The bits above them hold the sequence number of the phase, which
    /// comes from [`PHASES`]. Both are in one value so that one atomic read returns both.
    phase: AtomicU64,
    /// True if the rest of a request will not be read. The connection then cannot read another request.
    unread_input: AtomicBool,
    /// What a bulk request tells about itself, and whether writing is blocked because the client does not read.
    bulk: BulkConnection,
}

/// Sequence number of the phase that begins next; all connections share this counter. Sequence numbers order phases
/// exactly. A clock cannot do that, because two phases can begin within one tick.
static PHASES: AtomicU64 = AtomicU64::new(0);

/// Phase of a new connection on which nothing has arrived.
const SILENT: u64 = 0;
/// Phase in which a head or a TLS handshake is arriving.
const HEAD: u64 = 1;
/// Phase in which a request is being answered: its body has arrived completely, or was dropped before its end.
const REQUEST: u64 = 2;
/// Phase between two requests (keep-alive).
const IDLE: u64 = 3;
/// Phase in which the body of a request is still arriving.
const BODY: u64 = 4;

const PHASE_BITS: u32 = 3;
const PHASE: u64 = (1 << PHASE_BITS) - 1;

/// What a connection waits for, and since when. Of several connections, the one with the smallest value is closed
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    pub(crate) awaited: Awaited,
    /// Sequence number of the phase in which the connection waits. The longer it has waited, the smaller the number.
    phase_number: u64,
}

/// What a connection waits for. The order of the variants matters: when connections must be closed to make room, those
/// that wait for an earlier variant are closed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Awaited {
    /// A request of which nothing has arrived: the connection is idle.
    Request,
    /// The rest of a request head that has begun to arrive.
    Head,
    /// The rest of a request body.
    Body,
    /// The client to read its response: writing is blocked.
    Reader,
}

impl Default for Activity {
    /// Creates the activity of a new connection.
    fn default() -> Self {
        let activity = Self(Arc::new(ActivityState {
            phase: AtomicU64::default(),
            unread_input: AtomicBool::default(),
            bulk: BulkConnection::default(),
        }));
        activity.enter(SILENT);
        activity
    }
}

impl Activity {
    /// Notes that a head has been read. The request counts as being answered until the guard is dropped.
    pub(crate) fn begin_request(&self) -> RequestGuard {
        self.enter(REQUEST);
        RequestGuard(self.clone())
    }

    /// Notes that the first byte of a head has arrived.
    pub(crate) fn begin_head(&self) {
        self.enter(HEAD);
    }

    /// Returns what the connection waits for; `None` if it is answering a request or sending a response that its client
    /// reads.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let value = self.0.phase.load(Ordering::Acquire);
        let (phase, phase_number) = (value & PHASE, value >> PHASE_BITS);
        let awaited = match phase {
            _ if self.is_stalled() && mutations::is_active(Mutation::UnreadAnswersKeepPlaces) => {
                return None;
            }
            _ if self.is_stalled() => Awaited::Reader,
            REQUEST => return None,
            BODY if self.0.bulk.is_working() => return None,
            HEAD => Awaited::Head,
            BODY => Awaited::Body,
            _ => Awaited::Request,
        };
        Some(Waiting { awaited, phase_number })
    }

    /// Returns what a bulk request on the connection sets.
    pub(crate) fn bulk(&self) -> &BulkConnection {
        &self.0.bulk
    }

    /// Notes that the rest of the input will not be read.
    pub(crate) fn abandon_input(&self) {
        self.0.unread_input.store(true, Ordering::Release);
    }

    /// Notes whether writing is blocked because the client does not read.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.0.bulk.set_stalled(stalled);
    }

    /// True while writing is blocked because the client does not read.
    pub(crate) fn is_stalled(&self) -> bool {
        self.0.bulk.is_stalled()
    }

    fn enter(&self, phase: u64) {
        let number = PHASES.fetch_add(1, Ordering::Relaxed);
        self.0.phase.store(number << PHASE_BITS | phase, Ordering::Release);
    }

    /// Wraps a request body. The wrapper notes in this activity when the whole body has arrived, or when the body is
    /// dropped before its end. Once `close_token` is cancelled, reading data that has not arrived fails with
    /// [`ClosedToMakeRoom`].
    pub(crate) fn watch_body(&self, body: Incoming, close_token: CancellationToken) -> Body {
        let ended = body.is_end_stream();
        if !ended {
            self.begin_body();
        }
        Body::new(WatchedBody { body, activity: self.clone(), close_token, closing: None, ended })
    }

    /// Notes that the head has been read, but not yet the whole body.
    pub(crate) fn begin_body(&self) {
        self.enter(BODY);
    }

    fn end_body(&self) {
        if self.phase() == BODY {
            self.enter(REQUEST);
        }
    }

    /// True if the rest of a request will not be read.
    pub(crate) fn has_unread_input(&self) -> bool {
        self.0.unread_input.load(Ordering::Acquire)
    }

    fn phase(&self) -> u64 {
        self.0.phase.load(Ordering::Acquire) & PHASE
    }
}

/// A guard for a request that is being answered. Dropping the guard makes the connection idle.
#[derive(Debug)]
pub(crate) struct RequestGuard(Activity);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.enter(IDLE);
    }
}

/// A request body that updates the activity of its connection.
struct WatchedBody {
    body: Incoming,
    activity: Activity,
    close_token: CancellationToken,
    /// A future that waits for `close_token`; created the first time that reading has to wait for the client.
    closing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ended: bool,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // Read the data that has arrived before checking `close_token`, so that a body that has arrived completely is
        // always read to its end.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if frame.is_none() || self.body.is_end_stream() {
                self.ended = true;
                self.activity.end_body();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let this = &mut *self;
        let close_token = || Box::pin(this.close_token.clone().cancelled_owned());
        ready!(this.closing.get_or_insert_with(close_token).as_mut().poll(context));
        Poll::Ready(Some(Err(ClosedToMakeRoom.into())))
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
            self.activity.abandon_input();
        }
        self.activity.end_body();
    }
}

/// A stream that fails if its client takes too long to send a head or to read a response.
pub(crate) struct TimedStream<S> {
    inner: S,
    activity: Activity,
    head_timeout: Duration,
    write_timeout: Duration,
    /// Runs while a head is being read.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while writing is blocked because the client does not read.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Runs after the last write, while the rest of the input is discarded.
    linger_timer: Option<Pin<Box<Sleep>>>,
    lingered_bytes: u64,
}

impl<S> TimedStream<S> {
    /// Creates the stream of a new connection. The timeout for receiving the first request head starts now.
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

    /// Returns the error [`HeadTooSlow`] if a head takes too long to arrive; until then, returns `Pending`.
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

    /// Returns the result of a write, or an error if writing has been blocked for too long.
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
        let timeout = self.activity.bulk().idle_timeout().unwrap_or(self.write_timeout);
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        if self.activity.bulk().may_not_read() {
            // The client may send everything before it reads, and now the server itself does not read.
            timer.as_mut().reset(tokio::time::Instant::now() + timeout);
            return timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "timed out writing: the client does not read",
        )))
    }
}

impl<S: AsyncRead + Unpin> TimedStream<S> {
    /// True if input has arrived that will never be read, such as the next of several pipelined requests.
    fn has_unread(&mut self, context: &mut Context<'_>) -> bool {
        let mut scratch = [0; 1];
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut self.inner).poll_read(context, &mut buffer);
        matches!(read, Poll::Ready(Ok(()))) && !buffer.filled().is_empty()
    }

    /// Reads and discards input until the client stops sending, or until [`LINGER`] or [`LINGER_BYTES`] is reached.
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
            // A client of a bulk request that sends may read later.
            if let (Some(timeout), Some(timer)) =
                (self.activity.bulk().idle_timeout(), self.write_timer.as_mut())
            {
                timer.as_mut().reset(tokio::time::Instant::now() + timeout);
            }
            match self.activity.phase() {
                // The timeout for receiving the first head started with the connection and is still running.
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
            if !self.activity.has_unread_input() && !self.has_unread(context) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_while_the_server_works_on_its_lines_is_not_cut() {
        let second = Duration::from_secs(1);
        let activity = Activity::default();
        let bulk = activity.bulk().clone().begin(second);
        let (inner, _client) = duplex(8);
        let mut stream = TimedStream::new(inner, activity, second, second);
        bulk.set_working(true);
        let write = stream.write_all(&[0; 16]);
        assert!(tokio::time::timeout(second * 10, write).await.is_err(), "works");
        let waiting = bulk.wait();
        bulk.set_working(false);
        let write = stream.write_all(&[0; 16]);
        assert!(tokio::time::timeout(second * 10, write).await.is_err(), "waits");
        drop(waiting);
        let cut = stream.write_all(&[0; 16]).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::TimedOut);
    }
}
