//! The settings of API keys and rate limits, which `config` fills. A server without them accepts every request.

use std::path::{Path, PathBuf};

use super::ApiKey;
use crate::http::reload;

/// Settings of API keys. If they are present, requests need a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSettings {
    /// Keys from the configuration itself.
    pub keys: Vec<ApiKey>,
    /// Keys from a file, which is reloaded when it changes.
    pub keys_file: Option<KeysFile>,
    /// Number of wrong keys that one address may send per minute; 0 means no limit.
    pub failed_attempts_per_minute: u32,
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

/// The rate limit of one key, or of one address if there are no keys. A batch call counts as one request: its cost is
/// bounded by the limit on rows and by admission control in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitSettings {
    /// Sustained rate, at which tokens are added to the bucket; at least 1.
    pub requests_per_second: u32,
    /// Number of requests that may come at once, which is the size of the token bucket; at least 1.
    pub burst: u32,
}
