//! Timeouts and limits of connections, and the paths of the TLS certificate and key. `transport` applies these
//! settings.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AT_LEAST_ONE, require_time};
use crate::settings::{InvalidSetting, Section, millis, require};

/// Timeouts and limits of connections: a part of the section `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionSettings {
    /// Maximum number of open connections. At this limit, a new connection may replace another one; `connection_table`
    /// decides which one is closed.
    pub max_connections: usize,
    /// Maximum time from the first byte of a request (for the first request, from the start of the connection) to the
    /// end of its head.
    #[serde(rename = "header_read_timeout_ms", with = "millis")]
    pub header_read_timeout: Duration,
    /// Maximum time that a connection may stay open between two requests.
    #[serde(rename = "keep_alive_ms", with = "millis")]
    pub keep_alive: Duration,
    /// Maximum number of header fields in a request head.
    pub max_headers: usize,
    /// Maximum size of a request head in bytes; also the size of the read buffer of the connection.
    pub max_head_bytes: usize,
    /// Maximum pause between two frames of a request body.
    #[serde(rename = "body_idle_timeout_ms", with = "millis")]
    pub body_idle_timeout: Duration,
    /// Maximum time in which a whole request body must arrive.
    #[serde(rename = "body_total_timeout_ms", with = "millis")]
    pub body_total_timeout: Duration,
    /// Maximum time for which writing a response may be blocked because the client does not read.
    #[serde(rename = "write_timeout_ms", with = "millis")]
    pub write_timeout: Duration,
    /// Maximum time for which requests in flight may continue after shutdown begins. `config` sets it from
    /// `DrainSettings`.
    #[serde(skip)]
    pub drain_timeout: Duration,
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

impl Section for ConnectionSettings {
    const NAME: &'static str = "server";

    fn check(&self) -> Result<(), InvalidSetting> {
        let connections = self.max_connections;
        require(connections > 0, "max_connections", connections, AT_LEAST_ONE)?;
        require(self.max_headers > 0, "max_headers", self.max_headers, AT_LEAST_ONE)?;
        let times = [
            ("header_read_timeout_ms", self.header_read_timeout),
            ("keep_alive_ms", self.keep_alive),
            ("body_idle_timeout_ms", self.body_idle_timeout),
            ("body_total_timeout_ms", self.body_total_timeout),
            ("write_timeout_ms", self.write_timeout),
        ];
        for (key, time) in times {
            require_time(key, time)?;
        }
        // hyper panics if its read buffer is smaller than 8 KiB.
        let (bytes, accepted) = (self.max_head_bytes, "an integer of at least 8192");
        require(bytes >= 8192, "max_head_bytes", bytes, accepted)
    }
}

/// Paths of the TLS certificate and its private key: a part of the section `[server]`. Both are empty without TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsSettings {
    /// PEM file with the server's certificate, followed by the intermediate certificates.
    #[serde(rename = "tls_certificate")]
    pub certificate: PathBuf,
    /// PEM file with the unencrypted private key of the certificate (PKCS#8, SEC1 or PKCS#1).
    #[serde(rename = "tls_key")]
    pub key: PathBuf,
}

impl Section for TlsSettings {
    const NAME: &'static str = "server";

    fn check(&self) -> Result<(), InvalidSetting> {
        let has_certificate = !self.certificate.as_os_str().is_empty();
        let has_key = !self.key.as_os_str().is_empty();
        let accepted = "a PEM file, since server.tls_certificate is set";
        require(has_key || !has_certificate, "tls_key", "\"\"", accepted)?;
        let accepted = "a PEM file, since server.tls_key is set";
        require(has_certificate || !has_key, "tls_certificate", "\"\"", accepted)
    }
}

impl TlsSettings {
    /// Returns the paths if they are set; `None` means plain HTTP.
    #[must_use]
    pub fn if_set(self) -> Option<Self> {
        (!self.certificate.as_os_str().is_empty()).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_of_zero_is_refused_by_name() {
        let body_idle_timeout = Duration::ZERO;
        let settings = ConnectionSettings { body_idle_timeout, ..ConnectionSettings::default() };
        assert_eq!(settings.check().unwrap_err().key, "body_idle_timeout_ms");
    }
}
