//! Reads the files of a checkpoint that define its tokenizer.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::entries::Entries;
use crate::document::{self, DocumentError};

pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const VOCABULARY: &str = "vocab.txt";
const MODEL_CONFIG: &str = "config.json";

/// The parsed files, before they are interpreted. An optional field is `None` if its file does not exist.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: PathBuf,
    /// `tokenizer_config.json`; empty if it does not exist.
    pub(super) config: Entries,
    pub(super) special_tokens_map: Option<Entries>,
    pub(super) added_tokens: Option<Entries>,
    /// The contents of `tokenizer.json`, as an object.
    pub(super) tokenizer: Option<Map<String, Value>>,
    /// The bytes of `vocab.txt`. It is read only if there is no `tokenizer.json`, which takes precedence.
    pub(super) vocabulary: Option<Vec<u8>>,
    /// The field `tokenizer_class` of `config.json`.
    pub(super) model_class: Option<Value>,
}

impl Files {
    /// Reads the files that exist in `directory`.
    pub(super) fn read(directory: &Path) -> Result<Self, DocumentError> {
        let bytes = |name: &str| read(&directory.join(name));
        let entries = |name: &str| -> Result<Option<Entries>, DocumentError> {
            let file = bytes(name)?;
            file.map(|bytes| Entries::parse(&directory.join(name), &bytes)).transpose()
        };
        let object = |name: &str| -> Result<Option<Map<String, Value>>, DocumentError> {
            let file = bytes(name)?;
            file.map(|bytes| document::parse_object(&directory.join(name), &bytes)).transpose()
        };
        let tokenizer = object(TOKENIZER)?;
        let vocabulary = if tokenizer.is_none() { bytes(VOCABULARY)? } else { None };
        Ok(Self {
            directory: directory.to_owned(),
            config: entries(CONFIG)?.unwrap_or_default(),
            special_tokens_map: entries(SPECIAL_TOKENS_MAP)?,
            added_tokens: entries(ADDED_TOKENS)?,
            tokenizer,
            vocabulary,
            model_class: object(MODEL_CONFIG)?.and_then(|mut file| file.remove("tokenizer_class")),
        })
    }

    /// Like [`Files::read`], but parses the given contents of `tokenizer.json` and `tokenizer_config.json`, and assumes
    /// that there are no other files. Error messages use `path` for `tokenizer.json`.
    pub(super) fn of_texts(
        path: &Path,
        tokenizer: &str,
        config: &str,
    ) -> Result<Self, DocumentError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        Ok(Self {
            directory: directory.to_owned(),
            config: Entries::parse(&directory.join(CONFIG), config.as_bytes())?,
            special_tokens_map: None,
            added_tokens: None,
            tokenizer: Some(document::parse_object(path, tokenizer.as_bytes())?),
            vocabulary: None,
            model_class: None,
        })
    }

    /// Returns the path of a file of the checkpoint, for error messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Returns the bytes of a file, or `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, DocumentError> {
    match document::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(DocumentError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
