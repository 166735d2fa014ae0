//! The interface of `/bulk`, in this process or on a server.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// A stream of pieces of the answer.
pub type Lines = BoxStream<'static, Result<Bytes, String>>;

/// Something that answers bulk requests.
pub trait BulkService: Send + Sync {
    /// Sends lines, and returns the lines of the answer as they arrive.
    fn send(&self, lines: BoxStream<'static, Bytes>) -> BoxFuture<'_, Result<Lines, SendError>>;
}

/// A bulk request that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SendError {
    /// What to tell the user.
    pub message: String,
    /// When to try again; `None` if that cannot help.
    pub retry_after: Option<Duration>,
}
