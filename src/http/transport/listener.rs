//! A bound socket, with or without TLS. `cli` binds it; `server` accepts connections from it.
//!
//! The socket is a TCP socket. Simulations of the whole service use one in memory instead ([`Accept`]).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::sockets::Sockets;
use super::tls::Tls;

/// Pause after `accept` has failed, for example because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A source of connections.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection. Returns it with the address of the peer.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.accept().await?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok((stream, peer))
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener<S = TcpListener> {
    socket: S,
    tls: Option<Arc<Tls>>,
}

/// An accepted connection, from which nothing has been read yet.
pub(crate) struct Accepted<S> {
    pub(crate) stream: S,
    pub(crate) peer: SocketAddr,
    /// Counts the connection against the maximum number of open sockets until the permit is dropped.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl<S: Accept> From<S> for Listener<S> {
    fn from(socket: S) -> Self {
        Self { socket, tls: None }
    }
}

impl Listener {
    /// Returns the same socket, with TLS on its connections.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(Arc::new(tls)), ..self }
    }

    /// Returns the base URL under which clients reach the socket, such as `https://127.0.0.1:8443`.
    ///
    /// # Errors
    /// If the operating system cannot report the address.
    pub fn url(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.socket.local_addr()?))
    }
}

impl<S: Accept> Listener<S> {
    /// Returns the TLS configuration; `None` if the socket does not use TLS.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Accepts the next connection, after waiting for a permit. Returns `None` once `shutdown` is cancelled.
    pub(crate) async fn accept(
        &self,
        sockets: &Sockets,
        shutdown: &CancellationToken,
    ) -> Option<Accepted<S::Stream>> {
        let next = async {
            let permit = sockets.acquire().await;
            loop {
                match self.socket.accept().await {
                    // The injected fault drops the connection, as if the operating system had refused it.
                    Ok(_) if crate::faults::at("http::accept") => {}
                    Ok((stream, peer)) => return Accepted { stream, peer, permit },
                    Err(error) => {
                        // Some errors concern only this connection. Others, such as a lack of file descriptors, last
                        // until a connection is closed, so pause before the next attempt.
                        tracing::warn!(%error, "cannot accept a connection");
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
}
