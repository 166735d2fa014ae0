//! A bound TCP socket, with or without TLS. `cli` binds it; `server` accepts connections from it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::tls::Tls;

/// Pause after `accept` has failed, for example because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
}

/// An accepted connection, from which nothing has been read yet.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Counts the connection against the maximum number of open sockets until the permit is dropped.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
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
        Ok(format!("{scheme}://{}", self.tcp.local_addr()?))
    }

    /// Returns the TLS configuration; `None` if the socket does not use TLS.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Accepts the next connection, after waiting for a permit. Returns `None` once `shutdown` is cancelled.
    pub(crate) async fn accept(
        &self,
        permits: &Arc<Semaphore>,
        shutdown: &CancellationToken,
    ) -> Option<Accepted> {
        let next = async {
            let permit =
                Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
            loop {
                match self.tcp.accept().await {
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
