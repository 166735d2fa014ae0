//! Keys and limits as the server is told them. `config` fills these; a server without them is open and unlimited.

use std::path::{Path, PathBuf};

use super::ApiKey;
use crate::http::reload;

/// Requests need a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSettings {
    /// Keys from the configuration itself.
    pub keys: Vec<ApiKey>,
    /// Keys from a file that may change.
    pub keys_file: Option<KeysFile>,
    /// How often an address may send a wrong key; 0 lets it go on.
    pub failed_attempts_per_minute: u32,
}

/// A file of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it held at the start.
    pub keys: Vec<ApiKey>,
}

impl KeysFile {
    /// Reads the file.
    ///
    /// # Errors
    /// In words, without a word of its content, when it cannot be read or is no list of keys.
    pub fn load(path: &Path) -> Result<Self, String> {
        let content = reload::read(path)?;
        let keys =
            ApiKey::parse_file(&content).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), keys })
    }
}

/// How often one key (one address, where there are no keys) may ask. A batch call is one request: what it costs is
/// bounded by its rows, and by the engine's admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitSettings {
    /// In the long run; at least 1.
    pub requests_per_second: u32,
    /// At once; at least 1.
    pub burst: u32,
}
