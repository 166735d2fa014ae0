//! Turns an HTTP request into a typed request: one pipeline for JSON, multipart and raw bodies.
//!
//! `call` calls [`read`], which works in this order:
//!
//! 1. [`head`] checks the request head.
//! 2. Admission control in the engine admits the call. Nothing of the body has been read so far.
//! 3. [`body`] reads the body and reserves its bytes as they arrive.
//! 4. [`json`], [`multipart`] or [`raw`] parses the body. All three fill the same request types and name fields by the
//!    same paths in errors.
//!
//! The field types ([`fields`]) check single values; the endpoints check how values fit together. Images are not
//! decoded here.

pub(crate) mod body;
mod disposition;
pub(crate) mod fields;
pub(crate) mod form;
pub(crate) mod generation;
pub(crate) mod head;
pub(crate) mod image_field;
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
use super::context::RequestContext;
use super::error::{ApiError, Code};
use super::state::{HttpState, Services};
use crate::engine::Admission;

/// A request that passed admission control and was parsed.
pub(crate) struct AdmittedRequest<R> {
    pub(crate) request: R,
    /// What the engine has reserved for the call, the bytes of its body included.
    pub(crate) admission: Admission,
}

/// Admits, reads and parses a request. A request that its head or admission control rejects is rejected before any
/// byte of its body is read.
///
/// # Errors
/// Those of [`Head::check`], of admission control, of [`BodyReader`] and of the parsers.
pub(crate) async fn read<R: Request>(
    http: HttpRequest,
    state: &HttpState,
    services: &Services,
    context: &RequestContext,
    deadline: Instant,
) -> Result<AdmittedRequest<R>, ApiError> {
    let (parts, body) = http.into_parts();
    let settings = state.settings();
    let head = Head::check(&parts, settings)?;
    if crate::faults::at("http::admit") {
        return Err(ApiError::not_ready());
    }
    let client = state.access().client_id(&parts.extensions, context);
    let admission = services.engine.admit(client, head.declared_bytes.unwrap_or(0), deadline)?;
    let mut reader = BodyReader::new(body, &head, settings, context, (deadline, admission));
    let request = match &head.encoding {
        Encoding::Json { only_ascii } => {
            json::parse_body(reader.read_all().await?, *only_ascii).await
        }
        Encoding::Multipart { boundary } => multipart::parse(boundary, &mut reader, settings).await,
        Encoding::Raw => raw::parse(parts.uri.query(), reader.read_all().await?, settings),
    }?;
    Ok(AdmittedRequest { request, admission: reader.into_admission() })
}

/// The error for an image file above `max` bytes. The rest of the body may be unread, so the connection closes.
fn image_file_too_large(field: &str, max: usize) -> ApiError {
    let detail = format!("an image file may have at most {max} bytes (/info shows the limits)");
    ApiError::field(Code::PayloadTooLarge, field, detail).close_connection()
}
