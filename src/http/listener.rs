//! A bound socket, with or without TLS, and the next connection on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::tls::Tls;

/// Between two attempts to accept while the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
}

/// A connection that was accepted; nothing has been read from it.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Its place among the sockets that may be open.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

impl Listener {
    /// The same socket, speaking TLS.
    #[must_use]
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(Arc::new(tls)), ..self }
    }

    /// Its address as a client would write it: `https://127.0.0.1:8443`.
    ///
    /// # Errors
    /// When the system does not know the address.
    pub fn url(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.tcp.local_addr()?))
    }

    /// Its TLS, where it has any.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// The next connection, once there is room for it; `None` when shutting down.
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
                    // Dropped: as if the client had been refused by the system.
                    Ok(_) if crate::faults::at("http::accept") => {}
                    Ok((stream, peer)) => return Accepted { stream, peer, permit },
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
}
