//! The hub's HTTP protocol: one listing per revision, one HEAD and one ranged GET per file.
//!
//! Redirects are followed here and not by reqwest, because the checksum is in the headers of the first response, before
//! the redirect to the storage host, and because the token must not be sent to that host.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode, Url};

use super::cache::{is_commit, is_lower_hex};
use super::checkpoint::is_plain_file_name;
use super::{HubError, HubSettings, HubSource, Retry, Token};

/// Maximum time for opening a connection; after this time the attempt fails and is retried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A download that receives no byte for this long counts as interrupted.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of redirects of a request. The hub needs one or two; the limit ends redirect loops.
const MAX_REDIRECTS: usize = 10;
/// Maximum size of a listing in bytes. The listing of a model repository takes a few kilobytes.
const MAX_LISTING_BYTES: usize = 16 << 20;

/// HTTP client for one hub endpoint.
pub(super) struct HubClient {
    http: reqwest::Client,
    endpoint: Url,
    token: Option<Token>,
    retry: Retry,
}

/// The commit of a revision and the names of its files.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

/// Etag and size of one file, which the hub sends before the file is downloaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Name of the blob in the cache: the SHA-256 of a large file, or git's blob id (a SHA-1) of a small file.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// A checksum that the hub sends, in lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum<'a> {
    /// The SHA-256 of a large file.
    Sha256(&'a str),
    /// Git's blob id of a small file. Some mirrors, such as Artifactory, send the SHA-1 of the bytes alone.
    Sha1(&'a str),
}

/// A file of a repository at a commit.
#[derive(Clone, Copy)]
pub(super) struct RemoteFile<'a> {
    pub(super) id: &'a str,
    pub(super) commit: &'a str,
    pub(super) file: &'a str,
}

/// Installs ring as the process's TLS provider. Must be called before a reqwest client is built; further calls have no
/// effect.
pub fn install_tls_provider() {
    // The error only means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl HubClient {
    pub(super) fn try_new(settings: &HubSettings) -> Result<Self, HubError> {
        install_tls_provider();
        let endpoint =
            Url::parse(&settings.endpoint).map_err(|error| HubError::UnexpectedResponse {
                url: settings.endpoint.clone(),
                reason: format!("the endpoint is not a valid URL: {error}"),
            })?;
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("blip-server/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT);
            if settings.use_system_proxy { builder } else { builder.no_proxy() }
        };
        let http = match builder().build() {
            // On a machine without root certificates, building the client fails. A plain-text mirror needs no
            // certificates, so build a client that trusts none.
            Err(_) if endpoint.scheme() == "http" => builder().tls_certs_only([]).build(),
            built => built,
        };
        let http = http.map_err(HubError::Client)?;
        Ok(Self { http, endpoint, token: settings.token.clone(), retry: settings.retry })
    }

    pub(super) fn retry(&self) -> Retry {
        self.retry
    }

    /// Requests the commit of a revision and the names of its files.
    pub(super) async fn listing(&self, source: &HubSource) -> Result<Listing, HubError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let revision = source.revision().replace('/', "%2F");
        let url = self.url(&format!("api/models/{}/revision/{revision}", source.id))?;
        let bad = |reason: String| HubError::UnexpectedResponse { url: url.to_string(), reason };
        let body = retried(self.retry, || async {
            let mut response = self.send(Method::GET, &url, 0, |_| false).await?;
            self.check(&response, &source.id, &format!("{source}"))?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(unreachable_at(&url))? {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_LISTING_BYTES {
                    return Err(bad(format!("more than {MAX_LISTING_BYTES} bytes")));
                }
            }
            Ok(body)
        })
        .await?;
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(bad(format!("\"{}\" is not a commit", answer.sha)));
        }
        let files = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok(Listing { commit: answer.sha, files })
    }

    /// Requests the etag and size of a file, without its bytes.
    pub(super) async fn metadata(&self, remote: RemoteFile<'_>) -> Result<Metadata, HubError> {
        let url = self.file_url(remote)?;
        retried(self.retry, || async {
            let names_blob = |response: &Response| response.headers().contains_key("x-linked-etag");
            let response = self.send(Method::HEAD, &url, 0, names_blob).await?;
            if !response.status().is_redirection() {
                self.check(&response, remote.id, &remote.to_string())?;
            }
            read_metadata(response.headers())
                .map_err(|reason| HubError::UnexpectedResponse { url: url.to_string(), reason })
        })
        .await
    }

    /// Starts the download of a file at byte `offset`. The status of the response is 200 (all bytes from the first
    /// one), 206 or 416.
    pub(super) async fn open(
        &self,
        remote: RemoteFile<'_>,
        offset: u64,
    ) -> Result<Response, HubError> {
        let url = self.file_url(remote)?;
        let response = self.send(Method::GET, &url, offset, |_| false).await?;
        if response.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            self.check(&response, remote.id, &remote.to_string())?;
        }
        Ok(response)
    }

    /// Sends one request and follows redirects until `stop` returns true for a response or a response is not a
    /// redirect.
    async fn send(
        &self,
        method: Method,
        start: &Url,
        offset: u64,
        stop: impl Fn(&Response) -> bool,
    ) -> Result<Response, HubError> {
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            // Compressed responses would break sizes and ranges.
            let mut request =
                self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(token) = &self.token
                && url.origin() == self.endpoint.origin()
            {
                request = request.bearer_auth(token.secret());
            }
            if offset > 0 {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let response = request.send().await.map_err(unreachable_at(start))?;
            if !response.status().is_redirection() || stop(&response) {
                return Ok(response);
            }
            url = redirect_target(&url, response.headers()).map_err(|reason| {
                HubError::UnexpectedResponse { url: start.to_string(), reason }
            })?;
        }
        Err(HubError::UnexpectedResponse {
            url: start.to_string(),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }

    /// If the status is not a success, returns an error whose message contains advice.
    fn check(&self, response: &Response, id: &str, what: &str) -> Result<(), HubError> {
        match response.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(HubError::Refused {
                id: id.to_owned(),
                status: status.as_u16(),
                token_sent: self.token.is_some(),
            }),
            StatusCode::NOT_FOUND => Err(HubError::NotFound {
                what: match response.headers().get("x-error-code").map(HeaderValue::as_bytes) {
                    Some(b"RepoNotFound") => format!("the repository {id} was"),
                    Some(b"RevisionNotFound") => {
                        format!("the repository {id} exists, but {what} was")
                    }
                    Some(b"EntryNotFound") => format!("the file {what} was"),
                    _ => format!("{what} (repository, revision or file) was"),
                },
            }),
            status => Err(HubError::UnexpectedStatus {
                // The URL is shown without its query, because storage hosts put signatures there.
                url: response.url().as_str().split('?').next().unwrap_or_default().to_owned(),
                status: status.as_u16(),
            }),
        }
    }

    fn file_url(&self, remote: RemoteFile<'_>) -> Result<Url, HubError> {
        self.url(&format!("{}/resolve/{}/{}", remote.id, remote.commit, remote.file))
    }

    fn url(&self, path: &str) -> Result<Url, HubError> {
        let text = format!("{}/{path}", self.endpoint.as_str().trim_end_matches('/'));
        Url::parse(&text)
            .map_err(|error| HubError::UnexpectedResponse { url: text, reason: error.to_string() })
    }
}

impl std::fmt::Display for RemoteFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}@{}", self.file, self.id, self.commit)
    }
}

/// Runs `attempt` until it succeeds, fails permanently, or has failed `retry.attempts` times. Returns its last result.
pub(super) async fn retried<T, F: Future<Output = Result<T, HubError>>>(
    retry: Retry,
    attempt: impl Fn() -> F,
) -> Result<T, HubError> {
    let mut failures = 0;
    loop {
        match attempt().await {
            Err(error) if error.is_transient() => {
                failures += 1;
                if failures >= retry.attempts {
                    return Err(error);
                }
                tracing::warn!(%error, cause = error.cause(), failures, "the request to the hub failed; trying again");
                tokio::time::sleep(retry.pause(failures)).await;
            }
            done => return done,
        }
    }
}

/// Returns a function for `map_err` that converts the error of a request to `Unreachable`. It removes the URL from the
/// source error, because the URL may contain a signature.
pub(super) fn unreachable_at(url: &Url) -> impl FnOnce(reqwest::Error) -> HubError {
    let url = url.to_string();
    move |error| HubError::Unreachable { url, source: error.without_url() }
}

fn redirect_target(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let target = from
        .join(location.ok_or("a redirect without a location")?)
        .map_err(|error| format!("a redirect to an invalid URL: {error}"))?;
    match target.scheme() {
        "https" => Ok(target),
        "http" if from.scheme() == "http" => Ok(target),
        scheme => Err(format!("a redirect from {} to {scheme}", from.scheme())),
    }
}

/// Reads etag and size from response headers: `x-linked-etag` (the SHA-256) and `x-linked-size` for large files, `etag`
/// and `content-length` for others.
fn read_metadata(headers: &HeaderMap) -> Result<Metadata, String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (etag, size) = match text("x-linked-etag") {
        Some(etag) => (Some(etag), text("x-linked-size")),
        None => (text(ETAG.as_str()), text(CONTENT_LENGTH.as_str())),
    };
    let etag = etag.ok_or("no etag")?.trim_start_matches("W/").trim_matches('"');
    // The etag becomes a file name.
    if !is_plain_file_name(etag) {
        return Err(format!("\"{etag}\" is not an etag that can name a file"));
    }
    let size = size.map(str::parse).transpose().map_err(|_| "the size is not a number")?;
    Ok(Metadata { etag: etag.to_owned(), size })
}

impl Metadata {
    /// Returns the checksum that the bytes must have; `None` if the etag is not a checksum, as with some mirrors.
    pub(super) fn checksum(&self) -> Option<Checksum<'_>> {
        let digits = Some(self.etag.as_str()).filter(|etag| is_lower_hex(etag))?;
        match digits.len() {
            40 => Some(Checksum::Sha1(digits)),
            64 => Some(Checksum::Sha256(digits)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn linked_headers_describe_the_file_and_plain_ones_only_without_them() {
        let both = headers(&[
            ("etag", "\"storage\""),
            ("content-length", "12"),
            ("x-linked-etag", "\"abc\""),
            ("x-linked-size", "990"),
        ]);
        let expected = Metadata { etag: "abc".to_owned(), size: Some(990) };
        assert_eq!(read_metadata(&both), Ok(expected));
        let plain = headers(&[("etag", "W/\"def\""), ("content-length", "12")]);
        assert_eq!(read_metadata(&plain), Ok(Metadata { etag: "def".to_owned(), size: Some(12) }));
    }

    #[test]
    fn an_etag_is_the_checksum_that_its_length_says_or_none() {
        let checksum = |etag: &str| {
            let metadata = Metadata { etag: etag.to_owned(), size: None };
            metadata.checksum().map(|checksum| match checksum {
                Checksum::Sha256(_) => "SHA-256",
                Checksum::Sha1(_) => "SHA-1",
            })
        };
        assert_eq!(checksum(&"a".repeat(64)), Some("SHA-256"));
        assert_eq!(checksum(&"0".repeat(40)), Some("SHA-1"));
        for other in ["a".repeat(32), "A".repeat(40), "g".repeat(64), "5f3a-1c2".to_owned()] {
            assert_eq!(checksum(&other), None, "{other}");
        }
    }

    #[test]
    fn an_etag_that_could_leave_the_cache_is_refused() {
        for etag in ["\"../x\"", "\"a/b\"", "\"\"", "\".x\""] {
            assert!(read_metadata(&headers(&[("etag", etag)])).is_err(), "{etag}");
        }
    }

    #[test]
    fn redirects_never_step_down_from_tls() {
        let secure = Url::parse("https://hub.example/a").unwrap();
        assert!(
            redirect_target(&secure, &headers(&[("location", "http://cdn.example/b")])).is_err()
        );
        let next = redirect_target(&secure, &headers(&[("location", "/b?c")])).unwrap();
        assert_eq!(next.as_str(), "https://hub.example/b?c");
        assert!(redirect_target(&secure, &headers(&[])).is_err());
    }
}
