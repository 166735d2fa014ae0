//! The command `openapi`: prints the OpenAPI documents that the server serves. `openapi.yaml` is the plain one.

use super::error::CommandError;
use crate::http::{document, strict_document};

pub(super) fn run(json: bool, strict: bool) -> Result<(), CommandError> {
    let document = if strict { strict_document() } else { document() };
    // Only the plain document exists as YAML: it is the committed one.
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
