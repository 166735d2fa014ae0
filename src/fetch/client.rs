//! [`Fetcher`], the handle that `http` holds. It performs the whole fetch, from the wait for a permit to the last byte,
//! and follows a limited number of redirects.
//!
//! reqwest is configured to do nothing by itself: no redirects, no proxy, no cookies, no referer, no retries, no
//! decompression, no connection kept for the next fetch. Each hop requests a URL that has passed the checks of
//! `target`, at addresses that `resolver` has checked. The peer's address is checked once more when its response
//! arrives.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Failure, FetchError};
use super::resolver::{BlockedName, CheckedResolver, NameLookup, SystemLookup};
use super::settings::FetchSettings;
use super::target::{Rules, Target};
use super::{address, body};
use crate::settings::{InvalidSetting, Section};
use crate::telemetry::metrics::{GaugeGuard, Metrics};

/// Ports from which images may be fetched.
const PORTS: [u16; 2] = [80, 443];

/// A handle that fetches images by URL. Clones share the HTTP client and the limits.
#[derive(Clone)]
pub struct Fetcher(Arc<FetcherInner>);

struct FetcherInner {
    http: Client,
    rules: Rules,
    settings: FetchSettings,
    max_bytes: usize,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// A fetched file, and when and how long it was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The file's bytes. The fetch's permit is released when the last clone of these bytes is dropped.
    pub bytes: Bytes,
    /// When the first hop began, after the wait for a permit.
    pub began: Instant,
    /// Time from the first hop to the last byte, excluding the wait for a permit.
    pub took: Duration,
}

/// A permit for a fetch in progress, counted by a gauge.
struct FetchPermit {
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

/// A fetched file together with its permit.
///
/// Only the permits bound the memory of fetched files. A call's reservation in the engine does not include this memory,
/// because otherwise calls that only wait for slow hosts would use up capacity that other calls need. So the permit
/// stays with the bytes on their way through the decoding queue and the decoder.
struct BytesWithPermit {
    bytes: Bytes,
    _permit: FetchPermit,
}

impl AsRef<[u8]> for BytesWithPermit {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why the fetcher could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FetchSetupError {
    /// A setting has a value that is not accepted.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The HTTP client could not be created: most likely the machine has no root certificates.
    #[error(
        "cannot create the HTTP client; https needs the system's root certificates: install the package ca-certificates"
    )]
    Client(#[source] reqwest::Error),
}

/// The parts of a fetcher that tests replace.
pub(super) struct Dependencies {
    pub(super) lookup: Arc<dyn NameLookup>,
    pub(super) is_allowed: fn(IpAddr) -> bool,
    pub(super) ports: Vec<u16>,
    /// Root certificates that are trusted instead of the system's.
    pub(super) roots: Option<Vec<reqwest::Certificate>>,
}

impl Fetcher {
    /// Creates a fetcher that connects only to public addresses and accepts files up to `max_bytes`.
    ///
    /// # Errors
    /// If a setting is not accepted or the HTTP client cannot be created.
    pub fn try_new(
        settings: &FetchSettings,
        max_bytes: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FetchSetupError> {
        let dependencies = Dependencies {
            lookup: Arc::new(SystemLookup::new(settings.max_concurrent)),
            is_allowed: address::may_connect,
            ports: PORTS.to_vec(),
            roots: None,
        };
        Self::with_dependencies(settings, max_bytes, metrics, dependencies)
    }

    /// Creates a fetcher from its replaceable parts. `testing` passes the parts that a test replaces.
    pub(super) fn with_dependencies(
        settings: &FetchSettings,
        max_bytes: usize,
        metrics: Arc<Metrics>,
        dependencies: Dependencies,
    ) -> Result<Self, FetchSetupError> {
        settings.check()?;
        let Dependencies { lookup, is_allowed, ports, roots } = dependencies;
        let resolver = CheckedResolver { lookup, is_allowed };
        let http = client(settings, resolver, roots).map_err(FetchSetupError::Client)?;
        // `check` has already parsed every pattern, so parsing them again does not fail.
        let hosts = settings.host_patterns().unwrap_or_default();
        let rules = Rules { allow_http: settings.allow_http, hosts, ports, is_allowed };
        let permits = Arc::new(Semaphore::new(settings.max_concurrent));
        let settings = settings.clone();
        Ok(Self(Arc::new(FetcherInner { http, rules, settings, max_bytes, permits, metrics })))
    }

    /// Parses and checks a URL, without any network access.
    ///
    /// # Errors
    /// `NotAllowed` with the rule that the URL breaks.
    pub fn target(&self, url: &str) -> Result<Target, FetchError> {
        Target::parse(url, &self.0.rules).map_err(|rule| {
            self.0.count(Failure::Blocked.label());
            tracing::debug!(%rule, "a URL is not allowed");
            rule.into()
        })
    }

    /// Fetches a file before `deadline`. Dropping the future closes the connection.
    ///
    /// # Errors
    /// `Unreachable` for every failure at the other end; `Overloaded` if no permit became free within the total timeout
    /// of a fetch; `DeadlineExceeded` if `deadline` passed first.
    pub async fn fetch(&self, target: Target, deadline: Instant) -> Result<Fetched, FetchError> {
        let shared = &self.0;
        let permit = shared.acquire_permit(deadline).await?;
        let began = Instant::now();
        let end = deadline.min(began + shared.settings.total_timeout);
        let host = target.host().to_owned();
        let followed = tokio::time::timeout_at(end.into(), shared.follow(target)).await;
        let took = began.elapsed();
        let result = followed.unwrap_or(Err(Failure::Timeout));
        let label = result.as_ref().map_or_else(|failure| failure.label(), |_| Failure::OK);
        shared.count(label);
        let stage = shared.metrics.stage_duration_seconds.with_label_values(&["fetch"]);
        stage.observe(took.as_secs_f64());
        tracing::debug!(
            url.host = host,
            result = label,
            dur_ms = took.as_millis() as u64,
            "fetched"
        );
        match result {
            Ok(bytes) => {
                let bytes = Bytes::from_owner(BytesWithPermit { bytes, _permit: permit });
                Ok(Fetched { bytes, began, took })
            }
            Err(Failure::Timeout) if Instant::now() >= deadline => {
                Err(FetchError::DeadlineExceeded)
            }
            Err(_) => Err(FetchError::Unreachable),
        }
    }
}

impl FetcherInner {
    /// Waits for a permit, at most for the total timeout of a fetch.
    async fn acquire_permit(&self, deadline: Instant) -> Result<FetchPermit, FetchError> {
        let patience = deadline.min(Instant::now() + self.settings.total_timeout);
        let permit = Arc::clone(&self.permits).acquire_owned();
        // The semaphore is never closed, so only the timeout can fail.
        let Ok(Ok(permit)) = tokio::time::timeout_at(patience.into(), permit).await else {
            let late = Instant::now() >= deadline;
            return Err(if late { FetchError::DeadlineExceeded } else { FetchError::Overloaded });
        };
        let counted = GaugeGuard::new(&self.metrics.fetch_permits_in_use);
        Ok(FetchPermit { _permit: permit, _counted: counted })
    }

    /// Sends the request, follows redirects and reads the file.
    async fn follow(&self, mut target: Target) -> Result<Bytes, Failure> {
        for _ in 0..=self.settings.max_redirects {
            let response = self.send(&target).await?;
            if !is_redirect(response.status()) {
                return body::read(response, self.max_bytes).await;
            }
            let location = response.headers().get(LOCATION).ok_or(Failure::Redirect)?;
            target = target.redirected(location.as_bytes(), &self.rules)?;
        }
        Err(Failure::Redirect)
    }

    /// Sends the request of one hop and checks the peer's address.
    async fn send(&self, target: &Target) -> Result<Response, Failure> {
        let request = self.http.get(target.url().clone()).header(ACCEPT_ENCODING, "identity");
        let response = request.send().await.map_err(|error| failure_of(&error))?;
        // `resolver` and `target` have already checked the address; this check does not depend on them.
        match response.remote_addr() {
            Some(peer) if (self.rules.is_allowed)(peer.ip()) => Ok(response),
            Some(_) | None => Err(Failure::Blocked),
        }
    }

    fn count(&self, result: &str) {
        self.metrics.fetch_total.with_label_values(&[result]).inc();
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher")
    }
}

fn client(
    settings: &FetchSettings,
    resolver: CheckedResolver,
    roots: Option<Vec<reqwest::Certificate>>,
) -> Result<Client, reqwest::Error> {
    // As in `hub`, the error only means that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(concat!("blip-server/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .http1_only()
        .pool_max_idle_per_host(0)
        .dns_resolver(resolver)
        .connect_timeout(settings.connect_timeout);
    match roots {
        None => builder.build(),
        Some(roots) => builder.tls_certs_only(roots).build(),
    }
}

/// True for the redirects that a GET follows. `body` rejects all other 3xx responses, because only status 200 carries a
/// file.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn failure_of(error: &reqwest::Error) -> Failure {
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(cause) = source {
        if cause.is::<BlockedName>() {
            return Failure::Blocked;
        }
        source = cause.source();
    }
    if error.is_timeout() { Failure::Timeout } else { Failure::Unreachable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::testing::{FixedLookup, Hooks};

    fn fetcher(settings: &FetchSettings) -> Fetcher {
        let lookup = Arc::new(FixedLookup::new(&["127.0.0.1"]));
        let metrics = Arc::new(Metrics::try_new().unwrap());
        Fetcher::with_hooks(settings, 1000, metrics, Hooks::with_lookup(lookup)).unwrap()
    }

    #[tokio::test]
    async fn a_fetch_without_a_permit_in_time_is_refused_and_sends_no_request() {
        let settings = FetchSettings {
            max_concurrent: 1,
            total_timeout: Duration::from_millis(50),
            ..FetchSettings::default()
        };
        let fetcher = fetcher(&settings);
        let target = fetcher.target("https://example.org/").unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        let permit = fetcher.0.permits.acquire().await.unwrap();
        let refused = fetcher.fetch(target.clone(), far).await.unwrap_err();
        assert_eq!(refused, FetchError::Overloaded);
        let late = fetcher.fetch(target.clone(), Instant::now()).await.unwrap_err();
        assert_eq!(late, FetchError::DeadlineExceeded);
        drop(permit);
        // Now the fetch gets a permit, and fails for another reason.
        assert_eq!(fetcher.fetch(target, far).await.unwrap_err(), FetchError::Unreachable);
        assert_eq!(fetcher.0.metrics.fetch_total.with_label_values(&["blocked"]).get(), 1);
    }

    #[tokio::test]
    async fn a_file_keeps_its_place_until_the_last_of_its_bytes_is_dropped() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = host.local_addr().unwrap().port();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = host.accept().await.unwrap();
            let _head = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfile").await.unwrap();
        });
        let settings =
            FetchSettings { max_concurrent: 1, allow_http: true, ..FetchSettings::default() };
        let lookup = Arc::new(FixedLookup::new(&[]));
        let hooks = Hooks {
            is_allowed: |address| address.is_loopback(),
            ports: vec![port],
            ..Hooks::with_lookup(lookup)
        };
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let fetcher = Fetcher::with_hooks(&settings, 1000, Arc::clone(&metrics), hooks).unwrap();
        let target = fetcher.target(&format!("http://127.0.0.1:{port}/")).unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        let fetched = fetcher.fetch(target, far).await.unwrap();
        answering.await.unwrap();
        let places = || (fetcher.0.permits.available_permits(), metrics.fetch_permits_in_use.get());
        let (clone, slice) = (fetched.bytes.clone(), fetched.bytes.slice(1..3));
        drop(fetched);
        assert_eq!((places(), &*clone), ((0, 1), b"file".as_slice()));
        drop(clone);
        assert_eq!((places(), &*slice), ((0, 1), b"il".as_slice()));
        drop(slice);
        assert_eq!(places(), (1, 0));
    }

    #[test]
    fn a_wrong_setting_makes_no_client() {
        let settings = FetchSettings { max_concurrent: 0, ..FetchSettings::default() };
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let error = Fetcher::try_new(&settings, 1000, metrics).unwrap_err();
        assert!(error.to_string().contains("max_concurrent"), "{error}");
    }
}
