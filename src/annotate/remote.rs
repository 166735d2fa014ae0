//! `/bulk` of a running server.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Map, Value};

use super::row;
use super::service::{BulkService, Lines, SendError};

/// A running server.
#[derive(Debug)]
pub struct Remote {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
}

/// Statuses after which another attempt can succeed.
const TRANSIENT: [u16; 5] = [408, 429, 502, 503, 504];
/// Time without any answer after which a connection counts as broken. A server answers each line within ten minutes
/// (`bulk.deadline_ms`).
const SILENCE: Duration = Duration::from_secs(660);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);

impl Remote {
    /// Creates a client for the server at `url`, such as `http://host:8080`, with an API key if it needs one.
    ///
    /// # Errors
    /// If the client cannot be created, for example without root certificates.
    pub fn try_new(url: &str, key: Option<String>) -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("blip-server/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        // Plain HTTP needs no certificates, and a container image may have none.
        let plain = url.starts_with("http://");
        let client = if plain { builder.tls_certs_only([]) } else { builder }.build()?;
        Ok(Self { client, url: format!("{}/bulk", url.trim_end_matches('/')), key })
    }

    async fn request(&self, lines: BoxStream<'static, Bytes>) -> Result<Lines, SendError> {
        let lines = lines.map(Ok::<_, std::convert::Infallible>);
        let mut request =
            self.client.post(&self.url).header("content-type", "application/x-ndjson");
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.body(reqwest::Body::wrap_stream(lines)).send().await;
        let is_permanent = response.as_ref().is_err_and(reqwest::Error::is_builder);
        let response = response.map_err(|error| SendError {
            message: format!("no answer from {}: {}", self.url, with_causes(&error.without_url())),
            retry_after: (!is_permanent).then_some(Duration::ZERO),
        })?;
        let status = response.status();
        if status.is_success() {
            let pieces = response.bytes_stream();
            return Ok(pieces
                .map(|piece| piece.map_err(|error| with_causes(&error.without_url())))
                .boxed());
        }
        let after =
            response.headers().get("retry-after").and_then(|it| it.to_str().ok()?.parse().ok());
        let body = response.bytes().await.unwrap_or_default();
        let problem: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
        let detail =
            if problem.is_empty() { String::new() } else { format!(": {}", row::detail(&problem)) };
        let transient = TRANSIENT.contains(&status.as_u16());
        Err(SendError {
            message: format!("{} answered {status}{detail}", self.url),
            retry_after: transient.then(|| Duration::from_secs(after.unwrap_or(1))),
        })
    }
}

impl BulkService for Remote {
    fn send(&self, lines: BoxStream<'static, Bytes>) -> BoxFuture<'_, Result<Lines, SendError>> {
        self.request(lines).boxed()
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
