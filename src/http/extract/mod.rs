//! A request's body to a typed request, whatever its encoding: one pipeline for JSON, multipart and raw bodies.
//!
//! [`read`] is the way in. In order: the head is checked ([`head`]), the engine lets the call in, only
//! then the body is read ([`body`]), its bytes reserved as they arrive, and parsed ([`json`], [`multipart`], [`raw`]) into the same request types with
//! the same field paths in errors. Values are checked by the field types ([`fields`]); what they mean together is
//! the endpoint's business. Nothing is decoded here.

pub(crate) mod body;
mod disposition;
pub(crate) mod fields;
pub(crate) mod form;
pub(crate) mod head;
mod image_field;
mod json;
mod multipart;
mod raw;
pub(crate) mod request;
mod scalar;
mod unknown;

use axum::extract::Request as HttpRequest;
use std::time::Instant;

use self::body::BodyReader;
use self::head::{Encoding, Head};
use self::request::Request;
use super::error::{ApiError, Code};
use super::middleware::context::RequestContext;
use super::state::{HttpState, Services};
use crate::engine::Admission;

/// A request that was admitted and understood.
pub(crate) struct Admitted<R> {
    /// What was asked.
    pub(crate) request: R,
    /// Room for it.
    pub(crate) admission: Admission,
}

/// Admits and reads a request. Refusals from the head alone come before a byte of the body is read.
///
/// # Errors
/// What the head, the engine or the body refuses.
pub(crate) async fn read<R: Request>(
    http: HttpRequest,
    state: &HttpState,
    services: &Services,
    context: &RequestContext,
    deadline: Instant,
) -> Result<Admitted<R>, ApiError> {
    let (parts, body) = http.into_parts();
    let settings = state.settings();
    let head = Head::check(&parts, settings)?;
    if crate::faults::at("http::admit") {
        return Err(ApiError::not_ready());
    }
    let client = state.access().client_of(&parts.extensions, context);
    let admission = services.engine.admit(client, head.declared_bytes.unwrap_or(0), deadline)?;
    let mut reader = BodyReader::new(body, &head, settings, context, (deadline, admission));
    let request = match &head.encoding {
        Encoding::Json { only_ascii } => {
            json::parse_body(reader.read_all().await?, *only_ascii).await
        }
        Encoding::Multipart { boundary } => multipart::parse(boundary, &mut reader, settings).await,
        Encoding::Raw => raw::parse(parts.uri.query(), reader.read_all().await?, settings),
    }?;
    Ok(Admitted { request, admission: reader.into_admission() })
}

/// An image file above the limit, known before it was read to its end.
fn image_file_too_large(field: &str, max: usize) -> ApiError {
    let detail = format!("an image file has at most {max} bytes (/info shows the limits)");
    ApiError::field(Code::PayloadTooLarge, field, detail).closing()
}
