//! The settings of the HTTP side and their checks.
//!
//! - This file: the switches of the server and the access log.
//! - `limits`: the limits of a call. `bulk`: those of bulk requests.
//! - `connections`: connections and TLS.
//!
//! The settings of API keys and rate limits are in `access`.

mod bulk;
mod connections;
mod limits;

use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use bulk::BulkSettings;
pub use connections::{ConnectionSettings, TlsSettings};
pub use limits::Limits;
pub(crate) use limits::MAX_LISTED;

use super::access::{AuthSettings, RateLimitSettings};
use crate::input::InputSettings;
use crate::settings::{InvalidSetting, Section, millis, require};

/// All settings of the HTTP side. The fields up to `allowed_hosts` belong to the section `[server]`. Most of the others
/// have their own settings types or follow from other settings; `config` fills them in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the settings file")]
pub struct HttpSettings {
    /// Proxies whose `x-forwarded-for` is trusted.
    #[serde(with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// Maximum time from the arrival of a request to its response. Clients can only shorten it.
    #[serde(rename = "deadline_ms", with = "millis")]
    pub deadline: Duration,
    /// Whether the server serves the OpenAPI documents and the page `/docs`.
    pub docs: bool,
    /// Whether the server serves the playground at `/` and the status page at `/status`.
    pub playground: bool,
    /// Settings of cross-origin requests (CORS); `None` allows no such requests.
    #[serde(rename = "cors_allowed_origins", with = "cors_allowed_origins")]
    pub cors: Option<CorsSettings>,
    /// Host names of the server. If there are no API keys, web pages of these hosts may send requests.
    pub allowed_hosts: Vec<String>,

    /// Routes that speak the APIs of others.
    #[serde(skip)]
    pub compat: CompatSettings,
    /// The route of the Model Context Protocol.
    #[serde(skip)]
    pub mcp: McpSettings,
    /// Limits of bulk requests.
    #[serde(skip)]
    pub bulk: BulkSettings,
    /// Limits of one call.
    #[serde(skip)]
    pub limits: Limits,
    /// Limits of one image and limits of one text; `input` enforces them.
    #[serde(skip)]
    pub input: InputSettings,
    /// Timeouts and limits of connections.
    #[serde(skip)]
    pub connections: ConnectionSettings,
    /// What the access log contains.
    #[serde(skip)]
    pub access_log: AccessLogSettings,
    /// API keys; `None` accepts requests without a key.
    #[serde(skip)]
    pub auth: Option<AuthSettings>,
    /// Rate limit of one key or address; `None` sets no limit.
    #[serde(skip)]
    pub rate_limit: Option<RateLimitSettings>,
    /// TLS on the public listener; `None` serves plain HTTP.
    #[serde(skip)]
    pub tls: Option<TlsSettings>,
    /// True if the public listener has a loopback address. In that case, any host name can be made to resolve to the
    /// server (DNS rebinding), so a page need not belong to the server even if its host equals the `Host` field.
    #[serde(skip)]
    pub on_loopback: bool,
    /// True if metrics are served on a separate listener, and not on the public one.
    #[serde(skip)]
    pub operations_listener: bool,
    /// Time between two checks whether the key file or the certificate files have changed.
    #[serde(skip)]
    pub file_check_interval: Duration,
}

/// Settings of cross-origin requests (CORS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsSettings {
    /// Origins that may send requests, such as `https://example.org`; `*` allows every origin.
    pub allowed_origins: Vec<String>,
}

/// The routes that speak the APIs of others: the section `[compat]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompatSettings {
    /// Whether the server serves the routes below `/v1/`, `/api/` and `/hf/`.
    pub enabled: bool,
}

/// The route of the Model Context Protocol: the section `[mcp]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct McpSettings {
    /// Whether the server serves `/mcp`.
    pub enabled: bool,
}

/// What the access log contains: a part of the section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessLogSettings {
    /// Every n-th successful request is logged; 1 logs all of them, 0 logs none. Failures (5xx) are always logged.
    pub sample_every: u64,
    /// True if the log contains the IP address of the client.
    pub client_ip: bool,
    /// Maximum number of rejected requests (4xx) that are logged in one second.
    pub max_refusals_per_second: u32,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            deadline: Duration::from_secs(30),
            docs: true,
            playground: true,
            cors: None,
            allowed_hosts: Vec::new(),
            compat: CompatSettings::default(),
            mcp: McpSettings::default(),
            bulk: BulkSettings::default(),
            limits: Limits::default(),
            input: InputSettings::default(),
            connections: ConnectionSettings::default(),
            access_log: AccessLogSettings::default(),
            auth: None,
            rate_limit: None,
            tls: None,
            on_loopback: true,
            operations_listener: false,
            file_check_interval: Duration::from_secs(2),
        }
    }
}

impl Default for CompatSettings {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self { sample_every: 1, client_ip: false, max_refusals_per_second: 100 }
    }
}

/// The accepted values of a count that must not be 0, for messages.
const AT_LEAST_ONE: &str = "an integer of at least 1";

/// Checks that a time is not 0 and at most a day.
fn require_time(key: &'static str, time: Duration) -> Result<(), InvalidSetting> {
    let is_accepted = !time.is_zero() && time <= Duration::from_secs(24 * 3600);
    require(is_accepted, key, time.as_millis(), "more than zero and at most a day")
}

impl HttpSettings {
    /// Checks these settings and the sections in them. `config` checks each section while reading it. Tests set the
    /// fields directly, so they call this function.
    ///
    /// # Errors
    /// The first setting whose value is not accepted.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.check()?;
        self.bulk.check()?;
        self.limits.check()?;
        self.connections.check()?;
        self.rate_limit.map_or(Ok(()), |limit| limit.check())?;
        self.auth.as_ref().map_or(Ok(()), Section::check)
    }
}

impl Section for HttpSettings {
    const NAME: &'static str = "server";

    fn check(&self) -> Result<(), InvalidSetting> {
        let is_host = |host: &String| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && (host.chars().all(is_name) || host.parse::<Ipv6Addr>().is_ok())
        };
        for host in &self.allowed_hosts {
            let accepted = "host names or addresses without scheme and port: vision.example.org";
            require(is_host(host), "allowed_hosts", host, accepted)?;
        }
        require_time("deadline_ms", self.deadline)?;
        let is_origin = |origin: &String| {
            origin == "*"
                || (origin.starts_with("http://") || origin.starts_with("https://"))
                    && origin.parse::<axum::http::HeaderValue>().is_ok()
                    && !origin.ends_with('/')
        };
        for origin in self.cors.iter().flat_map(|cors| &cors.allowed_origins) {
            let accepted = "origins like https://example.org (no path, no final slash), or *";
            require(is_origin(origin), "cors_allowed_origins", origin, accepted)?;
        }
        Ok(())
    }
}

impl Section for CompatSettings {
    const NAME: &'static str = "compat";
}

impl Section for McpSettings {
    const NAME: &'static str = "mcp";
}

impl Section for AccessLogSettings {
    const NAME: &'static str = "log";
}

/// Networks, each written as `10.0.0.0/8` or as a single address.
mod networks {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        networks: &[IpNet],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(networks.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse().or_else(|_| address())
        };
        texts
            .iter()
            .map(network)
            .collect::<Result<_, _>>()
            .map_err(|_| D::Error::custom("addresses and networks: 10.0.0.7, 10.0.0.0/8, fd00::/8"))
    }
}

/// CORS settings, written as the list of allowed origins; an empty list is `None`.
mod cors_allowed_origins {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::CorsSettings;

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        cors: &Option<CorsSettings>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(cors.iter().flat_map(|cors| &cors.allowed_origins))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<CorsSettings>, D::Error> {
        let allowed_origins = Vec::<String>::deserialize(deserializer)?;
        Ok((!allowed_origins.is_empty()).then_some(CorsSettings { allowed_origins }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(HttpSettings::default().validate(), Ok(()));
        assert_eq!(TlsSettings::default().check(), Ok(()));
    }

    #[test]
    fn an_origin_with_a_path_is_refused() {
        let cors = CorsSettings { allowed_origins: vec!["https://example.org/".to_owned()] };
        let settings = HttpSettings { cors: Some(cors), ..HttpSettings::default() };
        assert_eq!(settings.check().unwrap_err().key, "cors_allowed_origins");
    }
}
