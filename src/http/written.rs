//! The OpenAPI document as it goes out, written at its first request: building it takes milliseconds, more than most
//! answers, and a request for it is forty bytes.

use std::sync::OnceLock;

use bytes::Bytes;

use super::error::ApiError;
use super::openapi;
use super::settings::Limits;

/// The documents in their forms; part of the router's state.
#[derive(Debug, Default)]
pub(crate) struct WrittenDocument {
    json: OnceLock<Bytes>,
    yaml: OnceLock<Bytes>,
    strict: OnceLock<Bytes>,
}

impl WrittenDocument {
    /// The plain document of a server with these limits as JSON.
    ///
    /// # Errors
    /// `internal_error`, which no limits can cause.
    pub(crate) fn json(&self, limits: &Limits) -> Result<Bytes, ApiError> {
        once(&self.json, || openapi::document_for(limits).to_json())
    }

    /// The plain document of a server with these limits as YAML.
    ///
    /// # Errors
    /// `internal_error`, which no limits can cause.
    pub(crate) fn yaml(&self, limits: &Limits) -> Result<Bytes, ApiError> {
        once(&self.yaml, || openapi::document_for(limits).to_yaml())
    }

    /// The strict document of a server with these limits as JSON.
    ///
    /// # Errors
    /// `internal_error`, which no limits can cause.
    pub(crate) fn strict(&self, limits: &Limits) -> Result<Bytes, ApiError> {
        once(&self.strict, || openapi::strict_document_for(limits).to_json())
    }
}

/// What was written before, else what is written now.
fn once<E: std::fmt::Display>(
    written: &OnceLock<Bytes>,
    write: impl FnOnce() -> Result<String, E>,
) -> Result<Bytes, ApiError> {
    if let Some(document) = written.get() {
        return Ok(document.clone());
    }
    let document = write().map_err(|error| {
        tracing::error!(%error, "the OpenAPI document could not be written");
        ApiError::internal()
    })?;
    Ok(written.get_or_init(|| document.into()).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_written_once_and_shared_from_then_on() {
        let (document, limits) = (WrittenDocument::default(), Limits::default());
        let json = document.json(&limits).unwrap();
        assert_eq!(json.as_ptr(), document.json(&limits).unwrap().as_ptr());
        let yaml = document.yaml(&limits).unwrap();
        assert_eq!(yaml.as_ptr(), document.yaml(&limits).unwrap().as_ptr());
        let strict = document.strict(&limits).unwrap();
        assert!(json != yaml && json != strict);
    }
}
