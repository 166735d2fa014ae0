//! The section `[tracing]`: whether and where traces are exported, and which. `config` also fills it from the standard
//! `OTEL_*` variables (`config/otel_variables.rs`).

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Certificate, Url};
use serde::{Deserialize, Serialize};

use crate::settings::{InvalidSetting, NotAccepted, Section, empty_is_none, millis, require, text};

/// Whether and where traces are exported, and which requests are traced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceSettings {
    /// False switches tracing off even if there is an endpoint.
    pub enabled: bool,
    /// URL of the collector, to which traces are sent. Without one, tracing is off.
    #[serde(with = "empty_is_none")]
    pub endpoint: Option<TraceEndpoint>,
    /// Header fields of each export, each written as `name=value`, with a percent-encoded value.
    pub headers: Vec<HiddenText>,
    /// How spans are encoded and sent.
    #[serde(with = "text")]
    pub protocol: TraceProtocol,
    /// Whether exports are compressed.
    #[serde(with = "text")]
    pub compression: TraceCompression,
    /// PEM file with the certificates that the collector's certificate is checked against, instead of the system's.
    /// Empty: those of the system.
    pub certificate: String,
    /// Maximum time for one export, including its retries.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
    /// Which requests are traced.
    #[serde(with = "text")]
    pub sampler: SamplerChoice,
    /// Share of traces that the samplers with a ratio record, 0 to 1.
    pub sample_ratio: f64,
    /// Where the context of a request comes from: `tracecontext` reads `traceparent` and `tracestate`; `none` begins a
    /// new trace for each request.
    pub propagators: Vec<String>,
    /// The resource attribute `service.name`. Empty: that of `resource_attributes`, else `blip-server`.
    pub service_name: String,
    /// Further resource attributes, each written as `name=value`, with a percent-encoded value.
    pub resource_attributes: Vec<String>,
    /// Maximum number of spans that wait for the exporter. Traces that do not fit are dropped and counted.
    pub max_queue_spans: usize,
    /// Number of spans that are exported at once.
    pub max_batch_spans: usize,
    /// How long a span waits for others, so that they are exported together.
    #[serde(rename = "batch_delay_ms", with = "millis")]
    pub batch_delay: Duration,
    /// Another maximum for the same time as `timeout`; the lower one applies.
    #[serde(rename = "export_timeout_ms", with = "millis")]
    pub export_timeout: Duration,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoint: None,
            headers: Vec::new(),
            protocol: TraceProtocol::HttpProtobuf,
            compression: TraceCompression::None,
            certificate: String::new(),
            timeout: Duration::from_secs(10),
            sampler: SamplerChoice::ParentBasedRatio,
            sample_ratio: 1.0,
            propagators: vec!["tracecontext".to_owned()],
            service_name: String::new(),
            resource_attributes: Vec::new(),
            max_queue_spans: 2048,
            max_batch_spans: 512,
            batch_delay: Duration::from_secs(5),
            export_timeout: Duration::from_secs(30),
        }
    }
}

/// The URL of a collector. Its path is part of it: most collectors take traces at `/v1/traces`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEndpoint(Url);

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HiddenText(String);

/// How spans are encoded and sent. OTLP's other transports are not built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceProtocol {
    /// Protocol Buffers over HTTP/1.1.
    HttpProtobuf,
}

/// Compression of exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceCompression {
    /// Exports are sent as they are.
    None,
    /// Exports are compressed with gzip.
    Gzip,
}

/// Which requests are traced. The names are those of the OpenTelemetry specification (`OTEL_TRACES_SAMPLER`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerChoice {
    /// All requests.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share of the traces, chosen by their ids. The client's decision does not count.
    Ratio,
    /// The client decides; all requests of clients that send no decision are traced.
    ParentBasedAlwaysOn,
    /// The client decides; no request of clients that send no decision is traced.
    ParentBasedAlwaysOff,
    /// The client decides; of the requests without a decision, a share is traced.
    ParentBasedRatio,
}

impl TraceSettings {
    /// Reads the file `certificate`; `None` if none is set.
    ///
    /// # Errors
    /// What is wrong with the file, in words.
    pub fn load_certificates(&self) -> Result<Option<Vec<Certificate>>, String> {
        if self.certificate.is_empty() {
            return Ok(None);
        }
        let pem = std::fs::read(Path::new(&self.certificate)).map_err(|error| error.to_string())?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
        if certificates.is_empty() {
            return Err("it contains no certificate".to_owned());
        }
        Ok(Some(certificates))
    }

    /// Parses the header fields.
    pub(super) fn header_fields(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let field = |text: &HiddenText| {
            let (name, value) = name_and_value(&text.0)?;
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        };
        self.headers.iter().map(|text| field(text).ok_or_else(|| "(hidden)".to_owned())).collect()
    }

    /// Parses the resource attributes.
    pub(super) fn attributes(&self) -> Result<Vec<(String, String)>, String> {
        let attribute = |text: &String| name_and_value(text).ok_or_else(|| text.clone());
        self.resource_attributes.iter().map(attribute).collect()
    }

    /// True if the context that clients send is used.
    pub(super) fn reads_parents(&self) -> bool {
        self.propagators.iter().any(|name| name == "tracecontext")
    }
}

/// Splits `name=value`, and decodes the value.
fn name_and_value(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
}

impl Section for TraceSettings {
    const NAME: &'static str = "tracing";
    const SECRETS: &'static [&'static str] = &["headers"];

    fn check(&self) -> Result<(), InvalidSetting> {
        if let Err(text) = self.header_fields() {
            let accepted = "header fields, each as name=value, with a percent-encoded value";
            return require(false, "headers", text, accepted);
        }
        if let Err(text) = self.attributes() {
            let accepted = "attributes, each as name=value, with a percent-encoded value";
            return require(false, "resource_attributes", text, accepted);
        }
        let ratio = self.sample_ratio;
        require((0.0..=1.0).contains(&ratio), "sample_ratio", ratio, "a number from 0 to 1")?;
        for name in &self.propagators {
            // Baggage is not used, but it is part of the default of OTEL_PROPAGATORS.
            let is_known = ["tracecontext", "baggage", "none"].contains(&name.as_str());
            let accepted = "tracecontext, baggage (which is not used) or none";
            require(is_known, "propagators", name, accepted)?;
        }
        let names = self.propagators.len();
        let is_contradiction = names > 1 && self.propagators.iter().any(|name| name == "none");
        let accepted = "none alone, or the propagators without none";
        require(!is_contradiction, "propagators", self.propagators.join(", "), accepted)?;
        for (key, time) in
            [("timeout_ms", self.timeout), ("export_timeout_ms", self.export_timeout)]
        {
            require(!time.is_zero(), key, 0, "above 0")?;
        }
        let (queue, batch) = (self.max_queue_spans, self.max_batch_spans);
        let is_accepted = (1..=MAX_QUEUE).contains(&queue);
        require(is_accepted, "max_queue_spans", queue, "1 to 100000")?;
        let accepted = "at least 1 and at most max_queue_spans";
        require((1..=queue).contains(&batch), "max_batch_spans", batch, accepted)
    }
}

/// Maximum of `max_queue_spans`: some fifty megabytes of spans, if each has 500 bytes.
const MAX_QUEUE: usize = 100_000;

impl TraceEndpoint {
    pub(super) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns the URL for the log: without its query, which may hold a secret.
    pub(super) fn shown(&self) -> String {
        let mut url = self.0.clone();
        url.set_query(None);
        url.into()
    }

    pub(super) fn is_tls(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl fmt::Display for TraceEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TraceEndpoint {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        let accepted = NotAccepted(
            "an http:// or https:// URL with its path, such as http://localhost:4318/v1/traces, without user name and \
             password (they belong into headers)",
        );
        let url: Url = text.parse().map_err(|_| accepted)?;
        let has_path = text.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        let has_user = !url.username().is_empty() || url.password().is_some();
        let is_accepted = ["http", "https"].contains(&url.scheme())
            && url.has_host()
            && has_path
            && !has_user
            && url.fragment().is_none();
        if is_accepted { Ok(Self(url)) } else { Err(accepted) }
    }
}

impl fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl fmt::Display for TraceProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HttpProtobuf => f.write_str("http/protobuf"),
        }
    }
}

impl FromStr for TraceProtocol {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "http/protobuf" => Ok(Self::HttpProtobuf),
            _ => Err(NotAccepted(
                "http/protobuf (this server speaks neither gRPC nor http/json; collectors take http/protobuf at port \
                 4318)",
            )),
        }
    }
}

impl fmt::Display for TraceCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
        })
    }
}

impl FromStr for TraceCompression {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            _ => Err(NotAccepted("none, gzip")),
        }
    }
}

/// The samplers and their names.
const SAMPLERS: [(SamplerChoice, &str); 6] = [
    (SamplerChoice::AlwaysOn, "always_on"),
    (SamplerChoice::AlwaysOff, "always_off"),
    (SamplerChoice::Ratio, "traceidratio"),
    (SamplerChoice::ParentBasedAlwaysOn, "parentbased_always_on"),
    (SamplerChoice::ParentBasedAlwaysOff, "parentbased_always_off"),
    (SamplerChoice::ParentBasedRatio, "parentbased_traceidratio"),
];

impl fmt::Display for SamplerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SAMPLERS.iter().find(|(choice, _)| choice == self).map(|(_, name)| *name);
        f.write_str(name.expect("every sampler is in the table"))
    }
}

impl FromStr for SamplerChoice {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        let found = SAMPLERS.iter().find(|(_, name)| *name == text);
        found.map(|(choice, _)| *choice).ok_or(NotAccepted(
            "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, \
             parentbased_traceidratio",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(text: &str) -> Vec<HiddenText> {
        vec![HiddenText(text.to_owned())]
    }

    #[test]
    fn defaults_export_nothing_and_pass_their_own_check() {
        let settings = TraceSettings::default();
        assert_eq!((settings.endpoint.as_ref(), settings.check()), (None, Ok(())));
        assert!(settings.reads_parents());
    }

    #[test]
    fn every_sampler_is_read_by_its_name() {
        for (choice, name) in SAMPLERS {
            assert_eq!(choice.to_string(), name);
            assert_eq!(name.parse(), Ok(choice));
        }
        assert!("jaeger_remote".parse::<SamplerChoice>().is_err());
    }

    #[test]
    fn an_endpoint_is_a_url_with_a_path_and_no_secret() {
        for good in ["http://localhost:4318/v1/traces", "https://otlp.example/x", "http://c/"] {
            assert_eq!(good.parse::<TraceEndpoint>().unwrap().to_string(), good);
        }
        for bad in [
            "localhost:4318/v1/traces",
            "http://localhost:4318",
            "grpc://localhost:4317/",
            "http://:4318/v1/traces",
            "http://user:secret@localhost/v1/traces",
            "http://localhost/v1/traces#x",
        ] {
            assert!(bad.parse::<TraceEndpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_of_headers_and_attributes_are_percent_decoded_and_headers_are_never_shown() {
        let settings = TraceSettings {
            headers: hidden(" Authorization = Bearer%20abc%2Cd"),
            resource_attributes: vec!["deployment.environment.name=a%20b".to_owned()],
            ..TraceSettings::default()
        };
        let (name, value) = settings.header_fields().unwrap().remove(0);
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("authorization", "Bearer abc,d"));
        let (name, value) = settings.attributes().unwrap().remove(0);
        assert_eq!((name.as_str(), value.as_str()), ("deployment.environment.name", "a b"));
        let shown = format!("{settings:?} {value:?}");
        assert!(!shown.contains("abc"), "{shown}");
    }

    #[test]
    fn each_wrong_setting_is_named() {
        let good = TraceSettings::default();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let cases = [
            (TraceSettings { headers: hidden("no value"), ..good.clone() }, "headers"),
            (TraceSettings { headers: hidden("a b=c"), ..good.clone() }, "headers"),
            (
                TraceSettings { resource_attributes: names(&["=x"]), ..good.clone() },
                "resource_attributes",
            ),
            (TraceSettings { sample_ratio: 1.5, ..good.clone() }, "sample_ratio"),
            (TraceSettings { sample_ratio: f64::NAN, ..good.clone() }, "sample_ratio"),
            (TraceSettings { propagators: names(&["b3"]), ..good.clone() }, "propagators"),
            (
                TraceSettings { propagators: names(&["none", "baggage"]), ..good.clone() },
                "propagators",
            ),
            (TraceSettings { timeout: Duration::ZERO, ..good.clone() }, "timeout_ms"),
            (TraceSettings { export_timeout: Duration::ZERO, ..good.clone() }, "export_timeout_ms"),
            (TraceSettings { max_queue_spans: 0, ..good.clone() }, "max_queue_spans"),
            (TraceSettings { max_batch_spans: 4096, ..good }, "max_batch_spans"),
        ];
        for (settings, name) in cases {
            assert_eq!(settings.check().unwrap_err().key, name);
        }
    }
}
