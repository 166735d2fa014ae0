//! Serves connections: limits their number, answers requests on them, and closes them (graceful shutdown). `app` calls
//! [`serve`] and [`serve_operations`]. `listener` accepts connections, `connection_table` decides which connections
//! have a place, and `tls` encrypts the connections.
//!
//! The accept loop is our own, because `axum::serve` gives hyper no timer. Without a timer, hyper's header timeout
//! never fires. Only HTTP/1.0 and HTTP/1.1 are served: no upgrades and no HTTP/2, even if the request head asks for
//! them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::connection::{Activity, Awaited, RequestGuard, TimedStream};
use super::connection_table::{ConnectionPlace, ConnectionTable, sockets_of};
use super::listener::{Accept, Accepted, Listener};
use super::malformed::{MalformedHead, SuppressedAnswer, WithoutAutomaticAnswers};
use super::sockets::{Exhaustion, Sockets};
use super::tls::Tls;
use crate::http::access::client::{Network, PeerAddress};
use crate::http::middleware::access_log::AccessLog;
use crate::http::middleware::guarded_body::{BodyGuard, GuardedBody};
use crate::http::middleware::load_shedding::InReserve;
use crate::http::reload::{Watched, watch};
use crate::http::router::operations_router;
use crate::http::settings::ConnectionSettings;
use crate::http::state::HttpState;
use crate::telemetry::metrics::{GaugeGuard, Metrics};

/// Time from the end of the drain timeout to the closing of the remaining connections. At the end of the drain timeout,
/// the engine ends the remaining requests with an error; this time is long enough to write their responses.
pub const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Connection limit of the operations listener, which serves a few probes and scrapers.
const OPERATIONS_CONNECTIONS: usize = 64;

/// Returns the maximum number of sockets that all listeners together may have open if the public listener accepts up to
/// `max_connections` connections.
pub fn max_sockets(max_connections: usize, with_operations: bool) -> usize {
    let operations = if with_operations { sockets_of(OPERATIONS_CONNECTIONS) } else { 0 };
    sockets_of(max_connections).saturating_add(operations)
}

/// Result of a graceful shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Number of connections that were cut because they were still open after the drain timeout.
    pub cut: usize,
    /// Number of requests whose response was not complete when their connection was cut.
    pub requests_cut: u64,
}

/// Serves the public listener, and watches the files of the keys and the certificate, until `shutdown` is cancelled.
/// Then lets requests in flight finish within `drain_timeout` (graceful shutdown).
///
/// The caller must set the state and the engine to draining before it cancels `shutdown`, and abort the engine after
/// `drain_timeout`. Connections stay open for one more second, so that the responses of aborted requests are written.
pub async fn serve(
    listener: impl Into<Listener>,
    router: Router,
    state: &HttpState,
    shutdown: CancellationToken,
) -> Drained {
    let listener = listener.into();
    let identity = listener.tls().map(|tls| tls.identity() as Arc<dyn Watched>);
    let keys = state.access().keys().map(|keys| Arc::clone(keys) as Arc<dyn Watched>);
    for watched in identity.into_iter().chain(keys) {
        let interval = state.settings().file_check_interval;
        let metrics = Arc::clone(state.metrics());
        tokio::spawn(watch(watched, metrics, interval, state.reloads(), shutdown.clone()));
    }
    let settings = state.settings().connections.clone();
    serve_connections(listener, router, settings, state, shutdown).await
}

/// Serves the operations listener until `shutdown` is cancelled: health, metrics and info, without API keys and rate
/// limits. This listener has its own connection limit, so that probes and scrapers can connect however many clients the
/// public listener has.
pub async fn serve_operations(
    listener: impl Into<Listener>,
    state: &HttpState,
    shutdown: CancellationToken,
) -> Drained {
    let settings = ConnectionSettings {
        max_connections: OPERATIONS_CONNECTIONS,
        drain_timeout: Duration::ZERO,
        ..state.settings().connections.clone()
    };
    let router = operations_router(state.clone());
    serve_connections(listener.into(), router, settings, state, shutdown).await
}

/// Serves the connections of one listener; [`serve`] and [`serve_operations`] call this.
pub(crate) async fn serve_connections<S: Accept>(
    listener: Listener<S>,
    router: Router,
    settings: ConnectionSettings,
    state: &HttpState,
    shutdown: CancellationToken,
) -> Drained {
    let table = ConnectionTable::new(settings.max_connections, Arc::clone(state.metrics()));
    // Allow more sockets than `max_connections`, for the reserve and because connections that were told to close need
    // time to end. Further connections wait in the backlog of the kernel.
    let sockets = Sockets::new(sockets_of(settings.max_connections));
    let log = Arc::new(AccessLog::new(state.settings().access_log.clone()));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some(Accepted { stream, peer, permit }) = listener.accept(&sockets, &shutdown).await {
        let activity = Activity::default();
        let Some(place) = table.place(Network::of(Some(peer.ip())), &activity) else {
            tracing::debug!(%peer, "connection closed: no place is free");
            continue;
        };
        let connection = Connection {
            router: router.clone(),
            settings: settings.clone(),
            metrics: Arc::clone(state.metrics()),
            log: Arc::clone(&log),
            peer,
            activity,
            place,
            shutdown: shutdown.clone(),
            cut: cut.clone(),
            exhaustion: sockets.exhaustion(),
            _counted: GaugeGuard::new(&state.metrics().http_connections),
            _permit: permit,
        };
        connections.spawn(connection.run(stream, listener.tls()));
    }
    drop(listener);
    connections.close();
    let drained = tokio::time::timeout(settings.drain_timeout + LAST_ANSWERS, connections.wait());
    if drained.await.is_ok() {
        return Drained { cut: 0, requests_cut: 0 };
    }
    let left = connections.len();
    let requests_cut = state.requests().count();
    state.metrics().http_requests_cut_total.inc_by(requests_cut);
    tracing::warn!(
        connections = left,
        requests = requests_cut,
        "the drain timeout is over; closing the remaining connections"
    );
    cut.cancel();
    connections.wait().await;
    Drained { cut: left, requests_cut }
}

/// One open connection, with everything that is needed to answer its requests.
struct Connection {
    router: Router,
    settings: ConnectionSettings,
    metrics: Arc<Metrics>,
    /// Logs request heads that do not reach the router. The layers of the router log all other requests.
    log: Arc<AccessLog>,
    peer: SocketAddr,
    activity: Activity,
    place: ConnectionPlace,
    shutdown: CancellationToken,
    cut: CancellationToken,
    exhaustion: Exhaustion,
    _counted: GaugeGuard,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin, tls: Option<Arc<Tls>>) {
        let settings = &self.settings;
        let (head, write) = (settings.header_read_timeout, settings.write_timeout);
        // The timeouts apply below TLS, so the time for the first request head includes the TLS handshake.
        let stream = TimedStream::new(stream, self.activity.clone(), head, write);
        let Some(tls) = tls else { return self.serve_http(stream).await };
        let handshake = tls.acceptor().accept(stream);
        let handshake_result = tokio::select! {
            biased;
            // There is no request yet, so the connection can close without a response.
            () = self.shutdown.cancelled() => return,
            _ = self.place.close_requested() => return,
            handshake_result = handshake => handshake_result,
        };
        match handshake_result {
            Ok(stream) => self.serve_http(stream).await,
            Err(error) => {
                self.metrics.tls_handshake_failures_total.inc();
                tracing::debug!(%error, peer = %self.peer, "TLS handshake failed");
            }
        }
    }

    /// Serves HTTP on a stream, after the TLS handshake if there is one.
    async fn serve_http(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let settings = &self.settings;
        let service = service_fn(|request| self.answer(request));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.keep_alive)
            .max_headers(settings.max_headers)
            // `max_buf_size` alone would let a longer head pass if all of it arrives in one piece.
            .max_header_size(settings.max_head_bytes)
            .max_buf_size(settings.max_head_bytes)
            .serve_connection(TokioIo::new(WithoutAutomaticAnswers::new(stream)), service);
        let (mut ending, mut replaced) = (false, false);
        let ended = loop {
            tokio::select! {
                // Check for a shutdown first: a response that becomes ready at the same time must say that the
                // connection closes.
                biased;
                () = self.cut.cancelled() => return,
                () = self.shutdown.cancelled(), if !ending => {}
                chosen_while = self.place.close_requested(), if !ending => {
                    let awaited = self.activity.waiting().map(|waiting| waiting.awaited);
                    match awaited {
                        // Do not shut down gracefully here: hyper would wait for the rest of the head, or for the client
                        // to read the response.
                        Some(Awaited::Head) => return,
                        Some(Awaited::Reader) if chosen_while == awaited => return,
                        // A client that stopped reading only after the choice gets the rest of its response.
                        _ => replaced = true,
                    }
                }
                () = self.exhaustion.needs_sockets(), if replaced => return,
                ended = &mut connection => break ended,
            }
            ending = true;
            Pin::new(&mut connection).graceful_shutdown();
        };
        let parts = connection.into_parts();
        if !parts.read_buf.is_empty() {
            self.activity.abandon_input();
        }
        let (stream, suppressed) = parts.io.into_inner().into_parts();
        let closing = self.close(stream, ended, suppressed, &parts.read_buf);
        tokio::select! {
            biased;
            () = closing => {}
            () = self.cut.cancelled() => {}
            // The connection can be closed at once: the only work that remains is to discard the input that a rejected
            // client still sends.
            _ = self.place.close_requested(), if !ending => {}
            () = self.exhaustion.needs_sockets() => {}
        }
    }

    /// Closes the stream of a connection after hyper has finished with it. If hyper stopped because of a malformed
    /// head, first writes the response to that head.
    async fn close(
        &self,
        mut stream: impl AsyncWrite + Unpin,
        ended: hyper::Result<()>,
        suppressed: Option<SuppressedAnswer>,
        unread: &[u8],
    ) {
        if let Err(error) = ended {
            let Some(head) = MalformedHead::of(&error, unread, suppressed, &self.settings) else {
                tracing::debug!(%error, peer = %self.peer, "connection ended with an error");
                return;
            };
            let answer = head.refuse(&self.metrics, &self.log, self.peer);
            // If an earlier response was written only in part, the client would mistake this response for the rest of
            // the earlier one.
            if self.activity.is_stalled() || !head.can_answer() {
                return;
            }
            self.activity.abandon_input();
            if let Err(error) = stream.write_all(&answer).await {
                tracing::debug!(%error, peer = %self.peer, "cannot write the answer to a malformed request");
                return;
            }
        }
        if let Err(error) = stream.shutdown().await {
            tracing::debug!(%error, peer = %self.peer, "cannot close a connection");
        }
    }

    /// Answers one request through the router.
    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let guard = self.activity.begin_request();
        request.extensions_mut().insert(PeerAddress(self.peer));
        self.activity.bulk().reset();
        let is_regular = self.place.try_promote();
        if !is_regular {
            request.extensions_mut().insert(InReserve);
        }
        let close_token = self.place.close_token();
        let bulk = self.activity.bulk().closed_by(close_token.clone());
        request.extensions_mut().insert(bulk);
        let request = request.map(|body| self.activity.watch_body(body, close_token));
        let mut response = self.router.clone().oneshot(request).await?;
        // Check `shutdown` here too: if a shutdown begins during this poll, the loop in `serve_http` notices it too
        // late.
        if !is_regular || self.activity.has_unread_input() || self.shutdown.is_cancelled() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Body::new(GuardedBody::new(body, guard))))
    }
}

/// Dropping the guard with the body of the response makes the connection idle again.
impl BodyGuard for RequestGuard {}
