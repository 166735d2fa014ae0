//! The network of a simulation: connections in memory. Bytes arrive at once and in order; a full buffer blocks the
//! sender, as a full window does. A client that leaves drops its end, which the server sees as the end of the stream, or
//! as a broken pipe when it writes. Resets that destroy data in transit are not simulated.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Mutex, mpsc};

use super::answer::{Answer, Parsed, parse};
use crate::http::Accept;

/// Number of connections that wait to be accepted, as in the backlog of a kernel.
const BACKLOG: usize = 128;

/// The listener's end of the network.
pub(super) struct MemoryListener(Mutex<mpsc::Receiver<(DuplexStream, SocketAddr)>>);

/// The clients' end of the network.
#[derive(Clone)]
pub(super) struct Network(mpsc::Sender<(DuplexStream, SocketAddr)>);

/// A client's end of one connection.
pub(super) struct Connection {
    stream: DuplexStream,
    received: Vec<u8>,
}

/// What came back for a request.
pub(super) enum Received {
    /// A whole answer.
    Answer(Answer),
    /// The server closed the connection before it sent a byte of the answer.
    Closed,
    /// The server closed the connection in the middle of an answer.
    CutOff,
    /// The server sent something that is not HTTP.
    Malformed(String),
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(Answer { status, code, .. }) => write!(f, "{status} {code}"),
            Self::Closed => write!(f, "closed"),
            Self::CutOff => write!(f, "cut off"),
            Self::Malformed(problem) => write!(f, "malformed: {problem}"),
        }
    }
}

/// Creates a network with one listener.
pub(super) fn network() -> (Network, MemoryListener) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    (Network(sender), MemoryListener(Mutex::new(receiver)))
}

impl Accept for MemoryListener {
    type Stream = DuplexStream;

    async fn accept(&self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.lock().await.recv().await {
            Some(connection) => Ok(connection),
            // All clients have left.
            None => std::future::pending().await,
        }
    }
}

impl Network {
    /// Opens a connection from `address`, with buffers of `buffer` bytes in both directions. Returns `None` if the
    /// connection is refused, because nobody listens or the backlog is full.
    pub(super) fn connect(&self, address: [u8; 4], buffer: usize) -> Option<Connection> {
        let (stream, accepted) = duplex(buffer);
        self.0.try_send((accepted, SocketAddr::from((address, 50_000)))).ok()?;
        Some(Connection { stream, received: Vec::new() })
    }
}

impl Connection {
    /// Sends bytes. Returns false if the server has closed the connection.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Ends the client's side of the connection; answers can still be received.
    pub(super) async fn finish_sending(&mut self) {
        // Fails only if the connection has ended anyway.
        let _ = self.stream.shutdown().await;
    }

    /// Receives one answer.
    pub(super) async fn receive(&mut self) -> Received {
        loop {
            match parse(&self.received) {
                Parsed::Complete(answer, length) => {
                    self.received.drain(..length);
                    return Received::Answer(answer);
                }
                Parsed::Malformed(problem) => return Received::Malformed(problem),
                Parsed::Incomplete => {}
            }
            // A read that fails means the same as the end of the stream.
            if self.stream.read_buf(&mut self.received).await.unwrap_or(0) == 0 {
                let nothing = self.received.is_empty();
                return if nothing { Received::Closed } else { Received::CutOff };
            }
        }
    }

    /// Receives at most one piece of what the server sends; returns its length, 0 at the end of the stream.
    pub(super) async fn receive_piece(&mut self, piece: &mut [u8]) -> usize {
        self.stream.read(piece).await.unwrap_or(0)
    }

    /// Returns true if the server has sent more than the answers that were received.
    pub(super) fn has_more(&mut self) -> bool {
        let mut waker = std::task::Context::from_waker(std::task::Waker::noop());
        let mut piece = [0; 256];
        let mut buffer = tokio::io::ReadBuf::new(&mut piece);
        let read =
            tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), &mut waker, &mut buffer);
        !self.received.is_empty() || (read.is_ready() && !buffer.filled().is_empty())
    }
}
