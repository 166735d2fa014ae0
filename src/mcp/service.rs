//! The interface to the routes that the tools call.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

/// Something that answers requests to this server's own routes.
pub trait ToolService: Send + Sync + 'static {
    /// Puts long texts back into the arguments of a tool, if the transport has taken them out of the message.
    fn restore(&self, _arguments: &mut Map<String, Value>) {}

    /// Sends a JSON body by POST, or a GET if there is none. An error is a text for the language model.
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
    /// When to call again, if the server is busy.
    pub retry_after: Option<Duration>,
    /// JSON.
    pub body: Bytes,
}
