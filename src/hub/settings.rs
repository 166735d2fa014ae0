//! Settings of the hub. `config` fills them from the configuration file, the environment and the `HF_*` variables;
//! tests set them directly.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::settings::{InvalidSetting, Section, millis, require};

/// How to reach the hub and where downloads are cached: the section `[hub]`, together with [`Retry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubSettings {
    /// The hub's address without a trailing slash (`HF_ENDPOINT`).
    #[serde(deserialize_with = "without_trailing_slash")]
    pub endpoint: String,
    /// Root of the cache in the hub's layout (`HF_HUB_CACHE`, else `$HF_HOME/hub`).
    pub cache: PathBuf,
    /// Access token, sent to the endpoint and to no other host (`HF_TOKEN`, else the token file).
    #[serde(with = "token")]
    pub token: Option<Token>,
    /// If true, no requests are sent, and startup fails if the cache is not complete (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Whether to use the proxies that the environment names (`HTTPS_PROXY`, `NO_PROXY`).
    #[serde(rename = "system_proxy")]
    pub use_system_proxy: bool,
    /// Retries after interrupted connections and after the statuses 408, 429 and 5xx.
    #[serde(skip)]
    pub retry: Retry,
}

impl Default for HubSettings {
    /// The defaults. The path of the cache is empty: it depends on the environment.
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: PathBuf::new(),
            token: None,
            offline: false,
            use_system_proxy: true,
            retry: Retry::default(),
        }
    }
}

impl Section for HubSettings {
    const NAME: &'static str = "hub";
    const SECRETS: &'static [&'static str] = &["token"];

    fn check(&self) -> Result<(), InvalidSetting> {
        let endpoint = &self.endpoint;
        let is_url = endpoint.starts_with("https://") || endpoint.starts_with("http://");
        require(is_url, "endpoint", endpoint, "a URL that starts with https:// or http://")
    }
}

fn without_trailing_slash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|url| url.trim_end_matches('/').to_owned())
}

/// How often failed requests are retried, with exponential backoff: a part of the section `[hub]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Maximum number of consecutive attempts that yield no new byte; at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further attempt, at most 30 s.
    #[serde(rename = "retry_pause_ms", with = "millis")]
    pub first_pause: Duration,
}

impl Section for Retry {
    const NAME: &'static str = "hub";

    fn check(&self) -> Result<(), InvalidSetting> {
        require(self.attempts > 0, "attempts", self.attempts, "1 or more")
    }
}

/// An access token. Its text never appears in logs or error messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Creates a token from `text` without the surrounding white space, because a token file ends with a line break.
    /// Returns `None` if nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// Returns the text of the token, for the `Authorization` header only.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

/// Reads the access token from a string, which is empty if there is no token. Writes a placeholder instead of the
/// token.
mod token {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Token;

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        token: &Option<Token>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if token.is_some() { "(hidden)" } else { "" })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Token>, D::Error> {
        String::deserialize(deserializer).map(|text| Token::new(&text))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, first_pause: Duration::from_millis(500) }
    }
}

impl Retry {
    /// Returns the pause after this number of consecutive failures, counted from 1.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_never_printed() {
        let token = Token::new("hf_secret\n").unwrap();
        assert_eq!(token.secret(), "hf_secret");
        assert!(!format!("{token:?}").contains("secret"));
        assert_eq!(Token::new(" \n"), None);
        let settings = HubSettings { token: Token::new("hf_secret"), ..HubSettings::default() };
        assert!(!serde_json::to_string(&settings).unwrap().contains("secret"));
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let retry = Retry::default();
        assert_eq!(retry.pause(1), Duration::from_millis(500));
        assert_eq!(retry.pause(3), Duration::from_secs(2));
        assert_eq!(retry.pause(30), Duration::from_secs(30));
    }
}
