//! JSON files of a checkpoint: `config.json`, `preprocessor_config.json`.

use super::error::LoadError;
use super::load::File;

/// Reads and parses a JSON file.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(file: &File) -> Result<T, LoadError> {
    serde_json::from_slice(&file.read()?).map_err(|error| LoadError::Json {
        path: file.path().to_owned(),
        detail: error.to_string(),
    })
}
