//! Connections: bounding them, answering on them, ending them. `listener` accepts them, `tls` encrypts them.
//!
//! An accept loop of our own, because `axum::serve` gives hyper no timer, without which its header timeout never
//! fires. HTTP/1.1 only: no upgrade, no HTTP/2, whatever the head asks for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::connection::{Activity, PeerAddress, RequestGuard, TimedStream};
use super::guarded_body::{BodyGuard, GuardedBody};
use super::listener::{Accepted, Listener};
use super::reload::{Watched, watch};
use super::router::operations_router;
use super::settings::ConnectionSettings;
use super::state::HttpState;
use super::tls::Tls;
use crate::telemetry::metrics::{GaugeGuard, Metrics};

/// Between the end of the drain time, when the engine fails what is left, and the end of the connections: enough
/// to write these answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Connections of the operations listener: a few probes and scrapers.
const OPERATIONS_CONNECTIONS: usize = 64;

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because they outlived the drain time.
    pub cut: usize,
}

/// Serves the public listener until `shutdown`, then lets requests in flight finish within `drain_timeout`. Watches the
/// files of keys and certificate meanwhile.
///
/// Whoever cancels `shutdown` has set the state to draining and the engine too, and aborts the engine after
/// `drain_timeout`; connections live one second longer, so that these last answers are written.
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
        tokio::spawn(watch(watched, Arc::clone(state.metrics()), interval, shutdown.clone()));
    }
    let settings = state.settings().connections.clone();
    serve_connections(listener, router, settings, state, shutdown).await
}

/// Serves the operations listener until `shutdown`: health, metrics and info, without keys and limits. It has
/// connections of its own, so that probes and scrapes find a place however many clients there are.
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

async fn serve_connections(
    listener: Listener,
    router: Router,
    settings: ConnectionSettings,
    state: &HttpState,
    shutdown: CancellationToken,
) -> Drained {
    let permits = Arc::new(Semaphore::new(settings.max_connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some(Accepted { stream, peer, permit }) = listener.accept(&permits, &shutdown).await {
        let connection = Connection {
            router: router.clone(),
            settings: settings.clone(),
            metrics: Arc::clone(state.metrics()),
            peer,
            shutdown: shutdown.clone(),
            cut: cut.clone(),
            _counted: GaugeGuard::new(&state.metrics().http_connections),
            _permit: permit,
        };
        connections.spawn(connection.run(stream, listener.tls()));
    }
    drop(listener);
    connections.close();
    let drained = tokio::time::timeout(settings.drain_timeout + LAST_ANSWERS, connections.wait());
    if drained.await.is_ok() {
        return Drained { cut: 0 };
    }
    let left = connections.len();
    tracing::warn!(connections = left, "the drain time is over, cutting connections");
    cut.cancel();
    connections.wait().await;
    Drained { cut: left }
}

/// One connection.
struct Connection {
    router: Router,
    settings: ConnectionSettings,
    metrics: Arc<Metrics>,
    peer: SocketAddr,
    shutdown: CancellationToken,
    cut: CancellationToken,
    _counted: GaugeGuard,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let activity = Activity::default();
        let settings = &self.settings;
        let (head, write) = (settings.header_read_timeout, settings.write_timeout);
        // The clocks run below TLS: a handshake is a part of the first head.
        let stream = TimedStream::new(stream, activity.clone(), head, write);
        let Some(tls) = tls else { return self.speak(stream, activity).await };
        let handshake = tls.acceptor().accept(stream);
        let shaken = tokio::select! {
            // Nothing was asked yet, so nothing is owed.
            () = self.shutdown.cancelled() => return,
            shaken = handshake => shaken,
        };
        match shaken {
            Ok(stream) => self.speak(stream, activity).await,
            Err(error) => {
                self.metrics.tls_handshake_failures_total.inc();
                tracing::debug!(%error, peer = %self.peer, "a TLS handshake failed");
            }
        }
    }

    /// HTTP on a stream that is ready for it.
    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin, activity: Activity) {
        let settings = &self.settings;
        let service = service_fn(|request| self.answer(&activity, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.keep_alive)
            .max_headers(settings.max_headers)
            // The buffer's bound alone lets a longer head pass that arrives at once.
            .max_header_size(settings.max_head_bytes)
            .max_buf_size(settings.max_head_bytes)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            // The shutdown first: an answer that becomes ready at the same time has to say that the connection closes.
            biased;
            () = self.shutdown.cancelled() => None,
            ended = connection.as_mut() => Some(ended),
        };
        let ended = if let Some(ended) = ended {
            ended
        } else {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = self.cut.cancelled() => Ok(()),
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, peer = %self.peer, "a connection ended badly");
        }
    }

    /// Answers one request.
    async fn answer(
        &self,
        activity: &Activity,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let guard = activity.begin_request();
        request.extensions_mut().insert(PeerAddress(self.peer));
        let request = request.map(|body| activity.watch_body(body));
        let mut response = self.router.clone().oneshot(request).await?;
        // A shutdown that begins while this is polled would be seen too late by whoever polls.
        if activity.has_body_left() || self.shutdown.is_cancelled() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Body::new(GuardedBody::new(body, guard))))
    }
}

/// The connection is idle again once its answer's body is dropped.
impl BodyGuard for RequestGuard {}
