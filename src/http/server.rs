//! Connections: accepting them, bounding them, ending them.
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::connection::{Activity, PeerAddress, RequestGuard, TimedStream};
use super::guarded_body::{BodyGuard, GuardedBody};
use super::settings::ConnectionSettings;
use super::state::HttpState;
use crate::telemetry::metrics::GaugeGuard;

/// Between the end of the drain time, when the engine fails what is left, and the end of the connections: enough
/// to write these answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Between two attempts to accept while the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut because they outlived the drain time.
    pub cut: usize,
}

/// Serves until `shutdown`, then lets requests in flight finish within `drain_timeout`.
///
/// Whoever cancels `shutdown` has set the state to draining and the engine too, and aborts the engine after
/// `drain_timeout`; connections live one second longer, so that these last answers are written.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    state: &HttpState,
    shutdown: CancellationToken,
) -> Drained {
    let settings = &state.settings().connections;
    let permits = Arc::new(Semaphore::new(settings.max_connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some((stream, peer, permit)) = accept(&listener, &permits, &shutdown).await {
        let connection = Connection {
            router: router.clone(),
            settings: settings.clone(),
            peer,
            shutdown: shutdown.clone(),
            cut: cut.clone(),
            _counted: GaugeGuard::new(&state.metrics().http_connections),
            _permit: permit,
        };
        connections.spawn(connection.run(stream));
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

/// The next connection, once there is room for it; `None` when shutting down.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let next = async {
        let permit =
            Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                // Dropped: as if the client had been refused by the system.
                Ok(_) if crate::faults::at("http::accept") => {}
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    // Some errors belong to the connection, others (no descriptors) last until one is closed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        connection = next => Some(connection),
    }
}

/// One connection.
struct Connection {
    router: Router,
    settings: ConnectionSettings,
    peer: SocketAddr,
    shutdown: CancellationToken,
    cut: CancellationToken,
    _counted: GaugeGuard,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let activity = Activity::default();
        let settings = &self.settings;
        let (head, write) = (settings.header_read_timeout, settings.write_timeout);
        let stream = TimedStream::new(stream, activity.clone(), head, write);
        let service =
            service_fn(|request| answer(self.router.clone(), self.peer, &activity, request));
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
}

/// Answers one request of a connection.
async fn answer(
    router: Router,
    peer: SocketAddr,
    activity: &Activity,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let guard = activity.begin_request();
    request.extensions_mut().insert(PeerAddress(peer));
    let mut response = router.oneshot(request.map(|body| activity.watch_body(body))).await?;
    if activity.has_body_left() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Body::new(GuardedBody::new(body, guard))))
}

/// The connection is idle again once its answer's body is dropped.
impl BodyGuard for RequestGuard {}
