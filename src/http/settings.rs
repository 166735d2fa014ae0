//! The settings of the HTTP side and their validation: limits of a call, timeouts of a connection, switches. `config`
//! fills them, and `/info` shows the limits.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::access::{ApiKey, AuthSettings, RateLimitSettings};
use crate::input::InputSettings;

/// Maximum number of items that are kept of a list in a request. No setting may allow longer lists.
pub(crate) const MAX_LISTED: usize = 1024;

/// All settings of the HTTP side.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// Limits of one call.
    pub limits: Limits,
    /// Limits of one image and one text; `input` enforces them.
    pub input: InputSettings,
    /// Maximum time from the arrival of a request to its response. Clients can only shorten it.
    pub deadline: Duration,
    /// Timeouts and limits of connections.
    pub connections: ConnectionSettings,
    /// Whether the server serves the OpenAPI documents and the page `/docs`.
    pub docs: bool,
    /// Cross-origin requests (CORS); `None` allows none of them.
    pub cors: Option<CorsSettings>,
    /// Host names of the server. If there are no API keys, web pages of these hosts may send requests.
    pub allowed_hosts: Vec<String>,
    /// True if the public listener has a loopback address. The `Host` field then does not prove that a page belongs to
    /// the server.
    pub on_loopback: bool,
    /// What the access log contains.
    pub access_log: AccessLogSettings,
    /// API keys; `None` accepts requests without a key.
    pub auth: Option<AuthSettings>,
    /// Rate limit of one key or address; `None` sets no limit.
    pub rate_limit: Option<RateLimitSettings>,
    /// Proxies whose `x-forwarded-for` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// TLS on the public listener; `None` serves plain HTTP.
    pub tls: Option<TlsSettings>,
    /// True if metrics are served on a separate listener, and not on the public one.
    pub operations_listener: bool,
    /// Time between two checks of the files of keys and certificates.
    pub file_check_interval: Duration,
}

/// Limits of one call; `/info` shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a request body in bytes, in any encoding.
    pub max_body_bytes: u64,
    /// Maximum number of images in a single call.
    pub max_images: usize,
    /// Maximum number of texts in a single call.
    pub max_texts: usize,
    /// Maximum number of questions in a single call.
    pub max_questions: usize,
    /// Maximum number of candidates in a single call.
    pub max_candidates: usize,
    /// Maximum number of inputs in a batch call.
    pub max_batch_inputs: usize,
    /// Maximum number of rows of one call. Depending on the call, these are questions x beams or candidates, image-text
    /// pairs if the `match` score is requested, or texts.
    pub max_rows: usize,
    /// Largest `max_new_tokens` that a call may request.
    pub max_new_tokens: usize,
    /// Maximum number of data frames of a request body. A limit on bytes is not enough, because a 1-byte frame costs
    /// far more memory than its data.
    pub max_body_frames: usize,
    /// Maximum number of text parts in a multipart body, and of fields in a query string.
    pub max_text_parts: usize,
}

/// Timeouts and limits of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Maximum number of open connections. At this limit, new connections replace idle ones; `connection_table` decides
    /// which.
    pub max_connections: usize,
    /// Maximum time from the first byte of a request (for the first request, from the start of the connection) to the
    /// end of its head.
    pub header_read_timeout: Duration,
    /// Maximum time that a connection may stay open between two requests.
    pub keep_alive: Duration,
    /// Maximum number of header fields in a request head.
    pub max_headers: usize,
    /// Maximum size of a request head in bytes; also the size of the read buffer of the connection.
    pub max_head_bytes: usize,
    /// Maximum pause between two frames of a request body.
    pub body_idle_timeout: Duration,
    /// Maximum time in which a whole request body must arrive.
    pub body_total_timeout: Duration,
    /// Maximum time for which writing a response may be blocked because the client does not read.
    pub write_timeout: Duration,
    /// Maximum time for which requests in flight may continue after shutdown begins.
    pub drain_timeout: Duration,
}

/// Settings of cross-origin requests (CORS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsSettings {
    /// Origins that may send requests, such as `https://example.org`; `*` allows every origin.
    pub allowed_origins: Vec<String>,
}

/// What the access log contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// Every n-th successful request is logged; 1 logs all, 0 none. Failures (5xx) are always logged.
    pub sample_every: u64,
    /// True if the log contains the IP address of the client.
    pub client_ip: bool,
    /// Maximum number of rejected requests (4xx) that are logged in one second.
    pub max_refusals_per_second: u32,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            input: InputSettings::default(),
            deadline: Duration::from_secs(30),
            connections: ConnectionSettings::default(),
            docs: true,
            cors: None,
            allowed_hosts: Vec::new(),
            on_loopback: true,
            access_log: AccessLogSettings::default(),
            auth: None,
            rate_limit: None,
            trusted_proxies: Vec::new(),
            tls: None,
            operations_listener: false,
            file_check_interval: Duration::from_secs(2),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_images: 16,
            max_texts: 128,
            max_questions: 16,
            max_candidates: 128,
            max_batch_inputs: 64,
            max_rows: 256,
            max_new_tokens: 64,
            max_body_frames: 65_536,
            max_text_parts: 256,
        }
    }
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_read_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            max_headers: 64,
            max_head_bytes: 32 << 10,
            body_idle_timeout: Duration::from_secs(10),
            body_total_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self { sample_every: 1, client_ip: false, max_refusals_per_second: 100 }
    }
}

/// The error for a setting whose value is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {value}, accepted: {accepted}")]
pub struct HttpSettingsError {
    /// Name of the setting among the HTTP settings, such as `deadline` or `limits.max_rows`.
    pub setting: &'static str,
    /// The rejected value, as text; hidden if it may be secret.
    pub value: String,
    /// Description of the values that are accepted.
    pub accepted: &'static str,
}

impl HttpSettings {
    /// Checks the conditions that types cannot express, such as that no limit is 0.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), HttpSettingsError> {
        let limits = &self.limits;
        let counts = [
            ("limits.max_body_bytes", limits.max_body_bytes),
            ("limits.max_images", limits.max_images as u64),
            ("limits.max_texts", limits.max_texts as u64),
            ("limits.max_questions", limits.max_questions as u64),
            ("limits.max_candidates", limits.max_candidates as u64),
            ("limits.max_batch_inputs", limits.max_batch_inputs as u64),
            ("limits.max_rows", limits.max_rows as u64),
            ("limits.max_new_tokens", limits.max_new_tokens as u64),
            ("limits.max_body_frames", limits.max_body_frames as u64),
            ("limits.max_text_parts", limits.max_text_parts as u64),
            ("connections.max_connections", self.connections.max_connections as u64),
            ("connections.max_headers", self.connections.max_headers as u64),
        ];
        if let Some((setting, value)) = counts.into_iter().find(|(_, value)| *value == 0) {
            let accepted = "an integer of at least 1";
            return Err(HttpSettingsError { setting, value: value.to_string(), accepted });
        }
        self.validate_lists()?;
        self.validate_times()?;
        // hyper panics if its read buffer is smaller than 8 KiB.
        if self.connections.max_head_bytes < 8192 {
            return Err(HttpSettingsError {
                setting: "connections.max_head_bytes",
                value: self.connections.max_head_bytes.to_string(),
                accepted: "an integer of at least 8192",
            });
        }
        self.validate_origins()?;
        self.validate_access()
    }

    /// Checks keys and rate limits. A rate of 0 would reject every request, and so would an empty list of keys. No
    /// secret may occur twice.
    fn validate_access(&self) -> Result<(), HttpSettingsError> {
        let refused =
            |setting, value: String, accepted| Err(HttpSettingsError { setting, value, accepted });
        if let Some(limit) = self.rate_limit {
            let at_least_one = "an integer of at least 1";
            if limit.burst == 0 {
                return refused("rate_limit.burst", "0".to_owned(), at_least_one);
            }
            if limit.requests_per_second == 0 {
                return refused("rate_limit.requests_per_second", "0".to_owned(), at_least_one);
            }
        }
        let Some(auth) = &self.auth else { return Ok(()) };
        let of_file = auth.keys_file.iter().flat_map(|file| &file.keys);
        let keys: Vec<&ApiKey> = auth.keys.iter().chain(of_file).collect();
        let repeated = |(index, key): (usize, &&ApiKey)| {
            keys[..index].iter().any(|known| known.has_secret_of(key))
        };
        if keys.is_empty() || keys.iter().enumerate().any(repeated) {
            let accepted = "at least one key, each with a different secret";
            return refused("auth.keys", "(hidden)".to_owned(), accepted);
        }
        Ok(())
    }

    /// Checks that no limit on the length of a list is above [`MAX_LISTED`]. Further items are not kept, so a higher
    /// limit would have no effect.
    fn validate_lists(&self) -> Result<(), HttpSettingsError> {
        let limits = &self.limits;
        let counts = [
            ("limits.max_images", limits.max_images),
            ("limits.max_texts", limits.max_texts),
            ("limits.max_questions", limits.max_questions),
            ("limits.max_candidates", limits.max_candidates),
            ("limits.max_batch_inputs", limits.max_batch_inputs),
        ];
        match counts.into_iter().find(|(_, count)| *count > MAX_LISTED) {
            None => Ok(()),
            Some((setting, count)) => Err(HttpSettingsError {
                setting,
                value: count.to_string(),
                accepted: "an integer from 1 to 1024",
            }),
        }
    }

    fn validate_times(&self) -> Result<(), HttpSettingsError> {
        let connections = &self.connections;
        let times = [
            ("deadline", self.deadline),
            ("connections.header_read_timeout", connections.header_read_timeout),
            ("connections.keep_alive", connections.keep_alive),
            ("connections.body_idle_timeout", connections.body_idle_timeout),
            ("connections.body_total_timeout", connections.body_total_timeout),
            ("connections.write_timeout", connections.write_timeout),
            ("connections.drain_timeout", connections.drain_timeout),
        ];
        let day = Duration::from_secs(24 * 3600);
        match times.into_iter().find(|(_, time)| time.is_zero() || *time > day) {
            None => Ok(()),
            Some((setting, time)) => Err(HttpSettingsError {
                setting,
                value: format!("{time:?}"),
                accepted: "more than zero and at most a day",
            }),
        }
    }

    fn validate_origins(&self) -> Result<(), HttpSettingsError> {
        let origins = self.cors.iter().flat_map(|cors| &cors.allowed_origins);
        let is_origin = |origin: &String| {
            origin == "*"
                || (origin.starts_with("http://") || origin.starts_with("https://"))
                    && origin.parse::<axum::http::HeaderValue>().is_ok()
                    && !origin.ends_with('/')
        };
        match origins.into_iter().find(|origin| !is_origin(origin)) {
            None => Ok(()),
            Some(origin) => Err(HttpSettingsError {
                setting: "cors.allowed_origins",
                value: origin.clone(),
                accepted: "origins like https://example.org (no path, no final slash), or *",
            }),
        }
    }
}

/// Paths of the TLS certificate and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the server's certificate, followed by the intermediate certificates.
    pub certificate: PathBuf,
    /// PEM file with the unencrypted private key of the certificate (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(HttpSettings::default().validate(), Ok(()));
    }

    #[test]
    fn a_limit_of_zero_is_refused_by_name() {
        let mut settings = HttpSettings::default();
        settings.limits.max_rows = 0;
        assert_eq!(settings.validate().unwrap_err().setting, "limits.max_rows");
    }

    #[test]
    fn a_list_may_not_be_longer_than_what_is_kept_of_it() {
        assert_eq!(MAX_LISTED, 1024, "the words of the error");
        let settings = |max_texts| HttpSettings {
            limits: Limits { max_texts, ..Limits::default() },
            ..HttpSettings::default()
        };
        assert_eq!(settings(MAX_LISTED).validate(), Ok(()));
        let refused = settings(MAX_LISTED + 1).validate().unwrap_err();
        assert_eq!((refused.setting, &*refused.value), ("limits.max_texts", "1025"));
    }

    #[test]
    fn a_timeout_of_zero_is_refused_by_name() {
        let mut settings = HttpSettings::default();
        settings.connections.body_idle_timeout = Duration::ZERO;
        assert_eq!(settings.validate().unwrap_err().setting, "connections.body_idle_timeout");
    }

    #[test]
    fn an_origin_with_a_path_is_refused() {
        let cors = CorsSettings { allowed_origins: vec!["https://example.org/".to_owned()] };
        let settings = HttpSettings { cors: Some(cors), ..HttpSettings::default() };
        assert_eq!(settings.validate().unwrap_err().setting, "cors.allowed_origins");
    }
}
