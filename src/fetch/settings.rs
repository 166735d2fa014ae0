//! The settings of fetching and their checks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hosts::{HOST_PATTERN, HostPattern};
use crate::settings::{InvalidSetting, Section, millis, require};

/// What may be fetched, and how long it may take: the section `[fetch]`. The size limit for image files applies to
/// fetched files too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FetchSettings {
    /// Whether images may be given by URL at all.
    pub enabled: bool,
    /// Hosts that images may come from: `example.org`, or `*.example.org` for all names below it. If the list is empty,
    /// images may come from every public host.
    pub allowed_hosts: Vec<String>,
    /// Whether `http://` is accepted as well as `https://`.
    pub allow_http: bool,
    /// Timeout from name resolution to an open connection, TLS included.
    #[serde(rename = "connect_timeout_ms", with = "millis")]
    pub connect_timeout: Duration,
    /// Timeout from the first hop to the last byte; it also bounds the wait for a permit.
    #[serde(rename = "total_timeout_ms", with = "millis")]
    pub total_timeout: Duration,
    /// Maximum number of redirects that a fetch follows, 0 to 10.
    pub max_redirects: usize,
    /// Maximum number of concurrent fetches, 1 to 1024; further fetches wait. A fetched file counts until it is
    /// decoded.
    pub max_concurrent: usize,
}

impl Default for FetchSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            allowed_hosts: Vec::new(),
            allow_http: false,
            connect_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(5),
            max_redirects: 3,
            max_concurrent: 32,
        }
    }
}

impl FetchSettings {
    /// Returns the maximum total size in bytes of the fetched files that exist at the same time, if each has at most
    /// `max_image_bytes`; 0 if fetching is disabled.
    #[must_use]
    pub fn most_bytes(&self, max_image_bytes: usize) -> u64 {
        if self.enabled { self.max_concurrent as u64 * max_image_bytes as u64 } else { 0 }
    }

    /// Parses `allowed_hosts`. The error is the first entry that is not valid.
    pub(super) fn host_patterns(&self) -> Result<Vec<HostPattern>, String> {
        let read = |text: &String| HostPattern::parse(text).ok_or_else(|| text.clone());
        self.allowed_hosts.iter().map(read).collect()
    }
}

impl Section for FetchSettings {
    const NAME: &'static str = "fetch";

    fn check(&self) -> Result<(), InvalidSetting> {
        if let Err(pattern) = self.host_patterns() {
            return require(false, "allowed_hosts", pattern, HOST_PATTERN);
        }
        let times = [
            ("connect_timeout_ms", self.connect_timeout),
            ("total_timeout_ms", self.total_timeout),
        ];
        for (key, time) in times {
            require(!time.is_zero(), key, 0, "above 0")?;
        }
        require(self.max_redirects <= 10, "max_redirects", self.max_redirects, "0 to 10")?;
        let fetches = self.max_concurrent;
        require((1..=1024).contains(&fetches), "max_concurrent", fetches, "1 to 1024")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fetch_nothing_and_pass_their_own_check() {
        assert!(!FetchSettings::default().enabled);
        assert_eq!(FetchSettings::default().check(), Ok(()));
    }

    #[test]
    fn files_take_as_much_as_so_many_of_the_largest_where_anything_is_fetched() {
        let off = FetchSettings { max_concurrent: 3, ..FetchSettings::default() };
        assert_eq!(off.most_bytes(1000), 0);
        assert_eq!(FetchSettings { enabled: true, ..off }.most_bytes(1000), 3000);
    }

    #[test]
    fn each_wrong_setting_is_named() {
        let good = FetchSettings::default();
        let hosts = vec!["example.org".to_owned(), "https://example.org".to_owned()];
        let cases = [
            (FetchSettings { allowed_hosts: hosts, ..good.clone() }, "allowed_hosts"),
            (
                FetchSettings { connect_timeout: Duration::ZERO, ..good.clone() },
                "connect_timeout_ms",
            ),
            (FetchSettings { total_timeout: Duration::ZERO, ..good.clone() }, "total_timeout_ms"),
            (FetchSettings { max_redirects: 11, ..good.clone() }, "max_redirects"),
            (FetchSettings { max_concurrent: 0, ..good }, "max_concurrent"),
        ];
        for (settings, name) in cases {
            assert_eq!(settings.check().unwrap_err().key, name);
        }
    }
}
