//! The interface to the routes that the tools call.

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Something that answers requests to this server's own routes.
pub trait ToolService: Send + Sync + 'static {
    /// Sends a JSON body by POST, or a GET if there is none. An error is a text for the user.
    fn request(
        &self,
        path: &'static str,
        body: Option<Vec<u8>>,
    ) -> BoxFuture<'_, Result<Answer, String>>;
}

/// The answer of a route.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Whether the status is 2xx. The body of any other answer is a problem document.
    pub is_success: bool,
    /// JSON.
    pub body: Bytes,
}
