//! `openapi`: prints the document that the server serves and that `openapi.yaml` holds.

use super::error::CommandError;
use crate::http::document;

pub(super) fn run(json: bool) -> Result<(), CommandError> {
    let document = document();
    let text = if json {
        document.to_pretty_json().map(|text| text + "\n").map_err(Into::into)
    } else {
        document.to_yaml().map_err(Into::into)
    };
    let text = text.map_err(|error: Box<dyn std::error::Error + Send + Sync>| {
        CommandError::failed("cannot write the document", error)
    })?;
    super::print(&text)
}
