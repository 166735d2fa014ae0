//! Serves the tools over standard input and output, one JSON-RPC message a line.

use rmcp::service::{QuitReason, ServerInitializeError, serve_server_with_ct};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::stdio_pipes;
use tokio_util::sync::CancellationToken;

use super::McpServer;

/// Maximum size of a message. A longer line gets no answer, so this is more than the routes accept: their errors say what is
/// too large.
const MAX_LINE_BYTES: usize = 64 << 20;

/// Why the connection to a client failed.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The client did not begin with the handshake of the protocol.
    #[error("the client did not begin with a request of the Model Context Protocol")]
    Handshake,
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Closed,
    /// The task that serves the client ended unexpectedly.
    #[error("the connection to the client ended unexpectedly")]
    Ended(#[from] tokio::task::JoinError),
}

/// Serves one client until it closes standard input, or until `stop` is cancelled. Must be called in a tokio runtime.
///
/// # Errors
/// If the handshake fails or the connection breaks.
pub async fn serve_stdio(server: McpServer, stop: CancellationToken) -> Result<(), StdioError> {
    let (input, output) = stdio_pipes();
    let transport =
        AsyncRwTransport::new_server(input, output).with_max_line_length(MAX_LINE_BYTES);
    let running = match serve_server_with_ct(server, transport, stop).await {
        Ok(running) => running,
        // A client that leaves before it says anything, and a user who presses Ctrl-C.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => {
            return Ok(());
        }
        Err(ServerInitializeError::TransportError { .. }) => return Err(StdioError::Closed),
        // The texts of the other errors contain whole messages.
        Err(_) => return Err(StdioError::Handshake),
    };
    let reason = running.waiting().await?;
    if let QuitReason::JoinError(error) = reason { Err(error.into()) } else { Ok(()) }
}
