//! The command `openapi`: prints one of the OpenAPI documents that the server serves. `openapi.yaml` in the repository
//! root is the plain document.

use super::error::CommandError;
use crate::http::{document, strict_document};

pub(super) fn run(json: bool, strict: bool) -> Result<(), CommandError> {
    let document = if strict { strict_document() } else { document() };
    // Only the plain document is available as YAML, because that is the one committed to the repository.
    let text = if json || strict {
        document.to_pretty_json().map(|text| text + "\n").map_err(Into::into)
    } else {
        document.to_yaml().map_err(Into::into)
    };
    let text = text.map_err(|error: Box<dyn std::error::Error + Send + Sync>| {
        CommandError::failed("cannot serialise the OpenAPI document", error)
    })?;
    super::print(&text)
}
