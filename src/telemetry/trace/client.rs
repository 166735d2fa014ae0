//! The HTTP client of the exporter: reqwest's blocking client, which the exporter's thread owns.
//!
//! The exporter of opentelemetry-otlp reads header fields from the environment itself. This client sends those of the
//! settings instead, which contain them unless another layer of the configuration overrides them.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use reqwest::blocking::{Client, ClientBuilder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;

use super::settings::{TraceCompression, TraceEndpoint, TraceSettings};
use crate::telemetry::logging::clipped;

/// Maximum size of a collector's answer that is read. Answers are a few bytes long.
const MAX_ANSWER: u64 = 64 << 10;

/// Sends exports, and remembers what came of the last one.
#[derive(Debug)]
pub(super) struct CollectorClient {
    http: Client,
    headers: Vec<(HeaderName, HeaderValue)>,
    compression: TraceCompression,
    /// Why the last request failed, or why the collector rejected some of its spans; `None` if all is well.
    problem: Mutex<Option<String>>,
    /// Number of spans of the last request that the collector rejected although it answered with success.
    rejected: AtomicU64,
}

impl CollectorClient {
    /// # Errors
    /// If the certificates cannot be read, or the system has none although the endpoint needs them.
    pub(super) fn try_new(
        settings: &TraceSettings,
        endpoint: &TraceEndpoint,
    ) -> Result<Self, HttpError> {
        // Fails if it was called before, for the client of the hub.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let timeout = settings.timeout.min(settings.export_timeout);
        let mut builder: ClientBuilder =
            Client::builder().timeout(timeout).redirect(Policy::none()).pool_max_idle_per_host(1);
        let certificates = settings.load_certificates()?;
        if certificates.is_some() || !endpoint.is_tls() {
            // Without TLS, the certificates of the system need not exist.
            builder = builder.tls_certs_only(certificates.unwrap_or_default());
        }
        Ok(Self {
            http: builder.build()?,
            headers: settings.header_fields()?,
            compression: settings.compression,
            problem: Mutex::default(),
            rejected: AtomicU64::new(0),
        })
    }

    /// Returns why the last request failed or spans were rejected, without the URL and without anything secret.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of spans that the collector rejected in its answer to the last request, and resets it.
    pub(super) fn take_rejected(&self) -> u64 {
        self.rejected.swap(0, Ordering::Relaxed)
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let mut sent = self.http.request(head.method, head.uri.to_string());
        for name in [CONTENT_TYPE, USER_AGENT] {
            if let Some(value) = head.headers.get(&name) {
                sent = sent.header(name, value);
            }
        }
        let body = match self.compression {
            TraceCompression::None => Vec::from(body),
            TraceCompression::Gzip => {
                sent = sent.header(CONTENT_ENCODING, "gzip");
                gzip(&body)?
            }
        };
        for (name, value) in &self.headers {
            sent = sent.header(name, value);
        }
        let answer = sent.body(body).send().map_err(reqwest::Error::without_url)?;
        let mut response = Response::builder().status(answer.status());
        if let Some(fields) = response.headers_mut() {
            fields.clone_from(answer.headers());
        }
        let mut bytes = Vec::new();
        answer.take(MAX_ANSWER).read_to_end(&mut bytes)?;
        Ok(response.body(Bytes::from(bytes))?)
    }
}

#[async_trait]
impl HttpClient for CollectorClient {
    /// Blocks: the exporter has a thread of its own.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.rejected.store(0, Ordering::Relaxed);
        let answer = self.send(request);
        match &answer {
            Ok(response) if response.status().is_success() => {
                self.set_problem(None);
                let parsed = ExportTraceServiceResponse::decode(&response.body()[..]);
                if let Some(partial) = parsed.ok().and_then(|answer| answer.partial_success) {
                    let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
                    self.rejected.store(rejected, Ordering::Relaxed);
                    if !partial.error_message.is_empty() {
                        let message = clipped(&partial.error_message);
                        self.set_problem(Some(format!("it rejected spans: {message}")));
                    }
                }
            }
            Ok(response) => self.set_problem(Some(format!("it answered {}", response.status()))),
            Err(error) => self.set_problem(Some(with_causes(&**error))),
        }
        answer
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Joins the messages of an error and of its causes.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    clipped(&causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
