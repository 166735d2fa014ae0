//! The settings of fetching and their checks.

use std::time::Duration;

use super::hosts::{HOST_PATTERN, HostPattern};

/// What may be fetched, and how long it may take. The size limit for image files applies to fetched files too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchSettings {
    /// Whether images may be given by URL at all.
    pub enabled: bool,
    /// Hosts that images may come from: `example.org`, or `*.example.org` for all names below it. If the list is empty,
    /// images may come from every public host.
    pub allowed_hosts: Vec<String>,
    /// Whether `http://` is accepted as well as `https://`.
    pub allow_http: bool,
    /// Timeout from name resolution to an open connection, TLS included.
    pub connect_timeout: Duration,
    /// Timeout from the first hop to the last byte; it also bounds the wait for a permit.
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

/// A setting whose value is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not accepted: it must be {accepted}")]
pub struct InvalidFetchSetting {
    /// Name of the field in [`FetchSettings`].
    pub name: &'static str,
    /// The rejected value as text.
    pub value: String,
    /// The accepted values, in words.
    pub accepted: &'static str,
}

impl FetchSettings {
    /// Returns the maximum total size in bytes of all fetched files at one time, if each has at most `max_image_bytes`;
    /// 0 if fetching is disabled.
    #[must_use]
    pub fn most_bytes(&self, max_image_bytes: usize) -> u64 {
        if self.enabled { self.max_concurrent as u64 * max_image_bytes as u64 } else { 0 }
    }

    /// Checks every value against its accepted range.
    ///
    /// # Errors
    /// The first setting whose value is not accepted.
    pub fn check(&self) -> Result<(), InvalidFetchSetting> {
        let refuse = |name, value, accepted| Err(InvalidFetchSetting { name, value, accepted });
        if let Err(pattern) = self.host_patterns() {
            return refuse("allowed_hosts", pattern, HOST_PATTERN);
        }
        let times =
            [("connect_timeout", self.connect_timeout), ("total_timeout", self.total_timeout)];
        if let Some((name, time)) = times.into_iter().find(|(_, time)| time.is_zero()) {
            return refuse(name, format!("{time:?}"), "above 0");
        }
        if self.max_redirects > 10 {
            return refuse("max_redirects", self.max_redirects.to_string(), "0 to 10");
        }
        if !(1..=1024).contains(&self.max_concurrent) {
            return refuse("max_concurrent", self.max_concurrent.to_string(), "1 to 1024");
        }
        Ok(())
    }

    /// Parses `allowed_hosts`. The error is the first entry that is not valid.
    pub(super) fn host_patterns(&self) -> Result<Vec<HostPattern>, String> {
        let read = |text: &String| HostPattern::parse(text).ok_or_else(|| text.clone());
        self.allowed_hosts.iter().map(read).collect()
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
            (FetchSettings { connect_timeout: Duration::ZERO, ..good.clone() }, "connect_timeout"),
            (FetchSettings { total_timeout: Duration::ZERO, ..good.clone() }, "total_timeout"),
            (FetchSettings { max_redirects: 11, ..good.clone() }, "max_redirects"),
            (FetchSettings { max_concurrent: 0, ..good }, "max_concurrent"),
        ];
        for (settings, name) in cases {
            assert_eq!(settings.check().unwrap_err().name, name);
        }
    }
}
