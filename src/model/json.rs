//! JSON files of a checkpoint: `config.json`, `preprocessor_config.json`.

use std::path::Path;

use super::error::LoadError;

/// Reads and parses a JSON file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| LoadError::Json { path: path.to_owned(), detail: error.to_string() })
}
