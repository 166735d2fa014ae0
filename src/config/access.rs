//! Validates the settings that control access: API keys, rate limits, trusted proxies, TLS and the operations listener.
//! The files that they name are read here, so that the server does not start with an invalid file. No error contains a
//! secret.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::ConfigError;
use super::validate::{Reader, read_address};
use crate::http::{ApiKey, AuthSettings, KeysFile, RateLimitSettings, Tls, TlsSettings};

impl Reader<'_> {
    /// Returns the address of the operations listener; `None` if there is none.
    pub(super) fn operations_listen(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let server = &self.raw.server;
        if server.operations_listen.is_empty() {
            return Ok(None);
        }
        let address = self.address("server.operations_listen", &server.operations_listen)?;
        if address.port() != 0 && read_address(&server.listen) == Some(address) {
            let accepted = "an address or port other than server.listen";
            return Err(self.layers.invalid("server.operations_listen", accepted));
        }
        Ok(Some(address))
    }

    /// Returns the API keys from the settings and from a file; `None` disables authentication.
    pub(super) fn auth(&self) -> Result<Option<AuthSettings>, ConfigError> {
        let raw = &self.raw.auth;
        if raw.keys.is_empty() && raw.keys_file.is_empty() {
            return Ok(None);
        }
        let keys = raw.keys.iter().map(|text| ApiKey::parse(text)).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|reason| {
            let accepted = format!("API keys, each a SECRET or ID:SECRET; {reason}");
            self.layers.invalid("auth.keys", accepted)
        })?;
        let path = Some(raw.keys_file.as_str()).filter(|path| !path.is_empty());
        Ok(Some(AuthSettings {
            keys,
            keys_file: path.map(|path| self.keys_file(Path::new(path))).transpose()?,
            failed_attempts_per_minute: raw.failed_attempts_per_minute,
        }))
    }

    fn keys_file(&self, path: &Path) -> Result<KeysFile, ConfigError> {
        KeysFile::load(path).map_err(|reason| {
            let accepted = format!(
                "a file with one key per line, each a SECRET or ID:SECRET; # starts a comment; {reason}"
            );
            self.layers.invalid("auth.keys_file", accepted)
        })
    }

    /// Returns the rate limit per API key or client address; `None` if there is no limit.
    pub(super) fn rate_limit(&self) -> Option<RateLimitSettings> {
        let raw = &self.raw.rate_limit;
        let (requests_per_second, burst) = (raw.requests_per_second, raw.burst);
        (requests_per_second > 0).then_some(RateLimitSettings { requests_per_second, burst })
    }

    /// Returns the trusted proxies, each a network or a single address.
    pub(super) fn trusted_proxies<T: std::str::FromStr + From<std::net::IpAddr>>(
        &self,
    ) -> Result<Vec<T>, ConfigError> {
        let network = |text: &String| {
            let address = || text.parse::<std::net::IpAddr>().map(T::from);
            text.parse().or_else(|_| address())
        };
        let networks = self.raw.server.trusted_proxies.iter().map(network);
        networks.collect::<Result<_, _>>().map_err(|_| {
            let accepted = "addresses and networks: 10.0.0.7, 10.0.0.0/8, fd00::/8";
            self.layers.invalid("server.trusted_proxies", accepted)
        })
    }

    /// Returns the paths of the TLS certificate and its key; `None` if neither is set. The files are loaded here only
    /// to check them.
    pub(super) fn tls(&self) -> Result<Option<TlsSettings>, ConfigError> {
        let server = &self.raw.server;
        let (certificate, key) = (&server.tls_certificate, &server.tls_key);
        if certificate.is_empty() != key.is_empty() {
            let (missing, given) = if key.is_empty() {
                ("server.tls_key", "server.tls_certificate")
            } else {
                ("server.tls_certificate", "server.tls_key")
            };
            return Err(self.layers.invalid(missing, format!("a PEM file, since {given} is set")));
        }
        if certificate.is_empty() {
            return Ok(None);
        }
        let settings =
            TlsSettings { certificate: PathBuf::from(certificate), key: PathBuf::from(key) };
        Tls::load(&settings).map_err(|error| {
            let accepted = format!("a PEM file (certificate and key must match); {}", error.reason);
            self.layers.invalid(&format!("server.{}", error.setting), accepted)
        })?;
        Ok(Some(settings))
    }
}
