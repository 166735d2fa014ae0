//! The settings of the HTTP side and their checks: limits of a call, timeouts of a connection, switches.
//! `config` fills them, `/info` shows the limits, nothing else reads them whole.

use std::time::Duration;

use ipnet::IpNet;

use super::access::{ApiKey, AuthSettings, RateLimitSettings};
use super::extract::fields::MAX_LISTED;
use super::tls::TlsSettings;
use crate::input::InputSettings;

/// Everything that the HTTP side can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// What one call may ask for.
    pub limits: Limits,
    /// Limits of one image and one text: the settings of `input`, which checks them.
    pub input: InputSettings,
    /// One deadline: a request is answered this long after its arrival; clients may only shorten it.
    pub deadline: Duration,
    /// Timeouts and bounds of connections.
    pub connections: ConnectionSettings,
    /// Serves the OpenAPI documents and `/docs`.
    pub docs: bool,
    /// Cross-origin requests; `None` answers none of them.
    pub cors: Option<CorsSettings>,
    /// Names under which the server is reached: pages of these hosts may ask where there are no keys.
    pub allowed_hosts: Vec<String>,
    /// The public listener has a loopback address, so no page but this machine's is its own.
    pub on_loopback: bool,
    /// What the access log holds.
    pub access_log: AccessLogSettings,
    /// API keys; `None` lets everyone in.
    pub auth: Option<AuthSettings>,
    /// How often one key or address may ask; `None` sets no limit.
    pub rate_limit: Option<RateLimitSettings>,
    /// Proxies whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// TLS on the public listener.
    pub tls: Option<TlsSettings>,
    /// Metrics are served on a listener of their own, and no more on the public one.
    pub operations_listener: bool,
    /// Between two looks at the files of keys and certificates.
    pub file_check_interval: Duration,
}

/// What one call may ask for; all of it is shown by `/info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request body in any encoding.
    pub max_body_bytes: u64,
    /// Images in a single call.
    pub max_images: usize,
    /// Texts in a single call.
    pub max_texts: usize,
    /// Questions in a single call.
    pub max_questions: usize,
    /// Candidates in a single call.
    pub max_candidates: usize,
    /// Inputs in a batch call.
    pub max_batch_inputs: usize,
    /// Rows of one call: questions x beams or candidates; pairs when `match` is asked; texts.
    pub max_rows: usize,
    /// Largest `max_new_tokens`.
    pub max_new_tokens: usize,
    /// Frames of a request body that carry data (1-byte frames cost far more memory than they bring).
    pub max_body_frames: usize,
    /// Text parts in a multipart body, and fields of a query string.
    pub max_text_parts: usize,
}

/// Timeouts and bounds of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Open connections. When there are as many, new ones take the places of idle ones; `connection_table` says whose.
    pub max_connections: usize,
    /// From the first byte of a request (or the connection) to the end of its head.
    pub header_read_timeout: Duration,
    /// How long a connection may stay open between two requests.
    pub keep_alive: Duration,
    /// Fields in a request's head.
    pub max_headers: usize,
    /// Bytes of a request's head, and of the connection's read buffer.
    pub max_head_bytes: usize,
    /// Longest pause between two frames of a request body.
    pub body_idle_timeout: Duration,
    /// Longest time that a request body may take.
    pub body_total_timeout: Duration,
    /// How long a client may refuse to read its answer.
    pub write_timeout: Duration,
    /// How long requests in flight may go on once shutdown began.
    pub drain_timeout: Duration,
}

/// Cross-origin requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsSettings {
    /// Origins that may call, as `https://example.org`; a single `*` allows every one.
    pub allowed_origins: Vec<String>,
}

/// What the access log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// Logs every n-th successful request; 1 logs all, 0 none. Failures are always logged.
    pub sample_every: u64,
    /// Logs the address of the client.
    pub client_ip: bool,
    /// Most refusals (4xx) logged in a second.
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

/// A setting whose value cannot be served with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {value}, accepted: {accepted}")]
pub struct HttpSettingsError {
    /// The setting's name inside its section (`deadline`, `limits.max_rows`).
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub accepted: &'static str,
}

impl HttpSettings {
    /// Checks what types cannot say: nothing that must happen may be bounded by zero.
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
        // hyper refuses (by panicking) a read buffer below 8 KiB.
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

    /// A limit of nothing would refuse everyone; keys that are no keys would let nobody in.
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
            let accepted = "keys whose secrets differ, at least one";
            return refused("auth.keys", "(hidden)".to_owned(), accepted);
        }
        Ok(())
    }

    /// No more of a list is kept than this, so a higher limit could not be told from this one.
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
