//! The settings for API keys and rate limits: the sections `[auth]` and `[rate_limit]`. A server without them accepts
//! every request.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ApiKey;
use crate::http::reload;
use crate::settings::{InvalidSetting, Section, require};

/// Settings for API keys: the section `[auth]`. If at least one key is configured, requests need a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthSettings {
    /// Keys from the configuration itself.
    #[serde(with = "keys")]
    pub keys: Vec<ApiKey>,
    /// Keys from a file, which is reloaded when it changes.
    #[serde(with = "keys_file")]
    pub keys_file: Option<KeysFile>,
    /// Number of wrong keys that one address may send per minute; 0 means no limit.
    pub failed_attempts_per_minute: u32,
}

impl Default for AuthSettings {
    fn default() -> Self {
        // This allows one failed attempt per second in the long run: enough for a client whose key was just replaced,
        // but far too few for guessing keys.
        Self { keys: Vec::new(), keys_file: None, failed_attempts_per_minute: 60 }
    }
}

impl Section for AuthSettings {
    const NAME: &'static str = "auth";
    const SECRETS: &'static [&'static str] = &["keys"];

    /// Checks that no secret occurs twice, so that every secret has exactly one owner.
    fn check(&self) -> Result<(), InvalidSetting> {
        let of_file = self.keys_file.iter().flat_map(|file| &file.keys);
        let keys: Vec<&ApiKey> = self.keys.iter().chain(of_file).collect();
        let repeated = |(index, key): (usize, &&ApiKey)| {
            keys[..index].iter().any(|known| known.has_secret_of(key))
        };
        let is_accepted = !keys.iter().enumerate().any(repeated);
        require(is_accepted, "keys", "(hidden)", "at least one key, each with a different secret")
    }
}

impl AuthSettings {
    /// Returns the settings if they contain keys; `None` means that requests need no key.
    #[must_use]
    pub fn if_keys(self) -> Option<Self> {
        let has_keys = !self.keys.is_empty() || self.keys_file.is_some();
        has_keys.then_some(self)
    }
}

/// The list of API keys, each written as `SECRET` or `ID:SECRET`. When the settings are serialized, `(hidden)` replaces
/// each key.
mod keys {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::ApiKey;

    pub(super) fn serialize<S: Serializer>(
        keys: &[ApiKey],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(|_| "(hidden)"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<ApiKey>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let keys: Result<Vec<ApiKey>, _> = texts.iter().map(|text| ApiKey::parse(text)).collect();
        keys.map_err(|reason| {
            D::Error::custom(format!("API keys, each a SECRET or ID:SECRET; {reason}"))
        })
    }
}

/// Reads and writes the path of the key file; an empty path means that there is none. Deserializing the path also loads
/// the file.
mod keys_file {
    use std::path::Path;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::KeysFile;

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<S: Serializer>(
        file: &Option<KeysFile>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let path = file.as_ref().map_or(Path::new(""), |file| &file.path);
        path.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<KeysFile>, D::Error> {
        let path = String::deserialize(deserializer)?;
        if path.is_empty() {
            return Ok(None);
        }
        KeysFile::load(Path::new(&path)).map(Some).map_err(|reason| {
            D::Error::custom(format!(
                "a file with one key per line, each a SECRET or ID:SECRET; # starts a comment; {reason}"
            ))
        })
    }
}

/// A file of API keys, one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysFile {
    /// Path of the file, which is watched while the server runs.
    pub path: PathBuf,
    /// Keys that the file contained at startup.
    pub keys: Vec<ApiKey>,
}

impl KeysFile {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// A message if the file cannot be read or is not a list of keys. The message contains the path, but no part of the
    /// content.
    pub fn load(path: &Path) -> Result<Self, String> {
        let content = reload::read(path)?;
        let keys =
            ApiKey::parse_file(&content).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), keys })
    }
}

/// The rate limit of one key owner or, for requests without a key, of one address: the section `[rate_limit]`. A batch
/// call counts as one request, because its cost is bounded by the limit on rows and by admission control in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimitSettings {
    /// Sustained rate, at which tokens are added to the bucket; 0 in a settings file means no limit.
    pub requests_per_second: u32,
    /// Number of requests that may come at once, which is the size of the token bucket; at least 1.
    pub burst: u32,
}

impl Default for RateLimitSettings {
    fn default() -> Self {
        Self { requests_per_second: 0, burst: 20 }
    }
}

impl Section for RateLimitSettings {
    const NAME: &'static str = "rate_limit";

    fn check(&self) -> Result<(), InvalidSetting> {
        let is_accepted = self.burst > 0 || self.requests_per_second == 0;
        require(is_accepted, "burst", self.burst, "an integer of at least 1")
    }
}

impl RateLimitSettings {
    /// Returns the settings if they limit the rate; `None` means no limit.
    #[must_use]
    pub fn if_limited(self) -> Option<Self> {
        (self.requests_per_second > 0).then_some(self)
    }
}
