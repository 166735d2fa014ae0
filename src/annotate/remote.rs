//! `/bulk` of a running server.

use std::error::Error;
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
    /// URL of `/bulk` there.
    url: String,
    /// True if the address of the server was given with a path.
    has_path: bool,
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
        let url = url.trim_end_matches('/');
        let has_path = url.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        Ok(Self { client, url: format!("{url}/bulk"), has_path, key })
    }

    async fn request(&self, lines: BoxStream<'static, Bytes>) -> Result<Lines, SendError> {
        let lines = lines.map(Ok::<_, std::convert::Infallible>);
        let mut request =
            self.client.post(&self.url).header("content-type", "application/x-ndjson");
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.body(reqwest::Body::wrap_stream(lines)).send().await;
        let response = response.map_err(|error| {
            let hint = hint(&error);
            let is_permanent = error.is_builder() || hint.is_some();
            let (causes, hint) = (with_causes(&error.without_url()), hint.unwrap_or_default());
            SendError {
                message: format!("no answer from {}: {causes}{hint}", self.url),
                retry_after: (!is_permanent).then_some(Duration::ZERO),
            }
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
        let transient = TRANSIENT.contains(&status.as_u16());
        Err(SendError {
            message: format!("{} answered {status}{}", self.url, self.advice(status, &problem)),
            retry_after: transient.then(|| Duration::from_secs(after.unwrap_or(1))),
        })
    }

    /// Returns the end of the message about a request that was refused: what the server says, or which flag to change.
    fn advice(&self, status: reqwest::StatusCode, problem: &Map<String, Value>) -> String {
        let detail = if problem.is_empty() { None } else { Some(row::detail(problem)) };
        match status.as_u16() {
            // The server speaks of the header, which this command sends itself.
            401 if self.key.is_none() => {
                ": the server requires an API key; name a file with it by --api-key-file FILE".to_owned()
            }
            401 => format!(
                ": {}; --api-key-file must name a file with the key alone",
                detail.as_deref().unwrap_or("the API key is not valid")
            ),
            404 | 405 if self.has_path => {
                ": give --server the address of the server without a path, such as http://127.0.0.1:8080"
                    .to_owned()
            }
            404 | 405 => ": is --server the address of a blip-server?".to_owned(),
            _ => detail.map(|detail| format!(": {detail}")).unwrap_or_default(),
        }
    }
}

impl BulkService for Remote {
    fn send(&self, lines: BoxStream<'static, Bytes>) -> BoxFuture<'_, Result<Lines, SendError>> {
        self.request(lines).boxed()
    }
}

/// Returns what to do about an error after which no attempt can succeed; `None` if another one may.
fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidMessage(_)) => {
                return Some("; this is no TLS: does the server speak http:// there?");
            }
            Some(rustls::Error::InvalidCertificate(_)) => {
                return Some("; the root certificates of this machine must contain its issuer");
            }
            Some(_) => return Some("; the two sides cannot agree on TLS"),
            None => {}
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return Some("; this is no HTTP: does the server speak https:// there?");
        }
        // `source` of an I/O error skips the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or(error.source());
    }
    None
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, InvalidMessage};
    use std::io;

    #[test]
    fn an_error_of_tls_is_permanent_however_deep_it_is() {
        let nested = |error: rustls::Error| {
            io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let plain = nested(InvalidMessage::InvalidContentType.into());
        assert!(hint(&plain).unwrap().contains("http://"), "{:?}", hint(&plain));
        let unknown = nested(CertificateError::UnknownIssuer.into());
        assert!(hint(&unknown).unwrap().contains("root certificates"), "{:?}", hint(&unknown));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(hint(&refused), None);
    }

    #[test]
    fn what_the_server_refuses_is_told_in_flags() {
        let remote = |url: &str, key: Option<&str>| {
            // The error only means that a provider is installed already.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Remote::try_new(url, key.map(str::to_owned)).unwrap()
        };
        let advice = |remote: &Remote, status: u16| {
            remote.advice(reqwest::StatusCode::from_u16(status).unwrap(), &Map::new())
        };
        let plain = remote("http://localhost:1/", None);
        assert!(advice(&plain, 401).contains("by --api-key-file FILE"));
        assert!(advice(&plain, 404).contains("address of a blip-server?"));
        assert!(advice(&remote("http://localhost:1", Some("k")), 401).contains("not valid"));
        assert!(advice(&remote("http://localhost/caption", None), 404).contains("without a path"));
        assert_eq!(advice(&plain, 503), "");
    }
}
