//! Turns an HTTP request into a typed request: one pipeline for JSON, multipart and raw bodies.
//!
//! `inference::start` calls [`read`], which works in this order:
//!
//! 1. [`head`] checks the request head.
//! 2. Admission control in the engine admits the call. None of the body has been read at this point.
//! 3. [`body`] reads the body and reserves its bytes as they arrive.
//! 4. [`json`], [`multipart`] or [`raw`] parses the body. All three produce the same request types, and their errors
//!    name fields by the same paths.
//!
//! The routes of other APIs call [`read_any_type`] instead, and parse the body themselves.
//!
//! The field types ([`fields`]) check single values; the endpoints check combinations of values. Images are not decoded
//! here.

pub(crate) mod body;
pub(crate) mod choices;
mod disposition;
pub(crate) mod fields;
pub(crate) mod form;
pub(crate) mod generation;
pub(crate) mod generation_lists;
pub(crate) mod head;
pub(crate) mod image_field;
mod json;
pub(crate) mod line;
mod multipart;
mod raw;
pub(crate) mod request;
mod scalar;
pub(crate) mod template;
mod unknown;

use axum::extract::Request as HttpRequest;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use self::body::BodyReader;
use self::head::{Encoding, Head};
use self::request::Request;
use super::blocking::Jobs;
use super::context::RequestContext;
use super::error::{ApiError, Code};
use super::state::{HttpState, Services};
use crate::engine::Admission;
use crate::mutations::{self, Mutation};

/// A request that passed admission control and was parsed.
pub(crate) struct AdmittedRequest<R> {
    pub(crate) request: R,
    /// The engine's reservation for the call, including the bytes of its body.
    pub(crate) admission: Admission,
}

/// A body that passed admission control and was read.
pub(crate) struct AdmittedBody {
    pub(crate) bytes: Bytes,
    /// The engine's reservation for the call, including the bytes of its body.
    pub(crate) admission: Admission,
}

impl AdmittedBody {
    /// Parses the body as a JSON object. Unknown fields are the concern of the type.
    ///
    /// # Errors
    /// `invalid_request`, with the field; `overloaded` if there is no memory for it.
    pub(crate) async fn json<R: DeserializeOwned + Send + 'static>(
        &self,
        jobs: &Jobs,
    ) -> Result<R, ApiError> {
        json::parse_body(self.bytes.clone(), false, (jobs, &self.admission)).await
    }
}

/// Admits a request and reads its body, whatever content type the head declares.
///
/// # Errors
/// The errors of [`Head::check_any_type`], admission control and [`BodyReader`].
pub(crate) async fn read_any_type(
    http: HttpRequest,
    state: &HttpState,
    services: &Services,
    context: &RequestContext,
    deadline: Instant,
) -> Result<AdmittedBody, ApiError> {
    let (parts, body) = http.into_parts();
    let settings = state.settings();
    let head = Head::check_any_type(&parts, settings)?;
    let client = state.access().client_id(&parts.extensions, context);
    let admission = services.engine.admit(client, head.declared_bytes.unwrap_or(0), deadline)?;
    let span = context.spans.open("read");
    let mut reader = BodyReader::new(body, &head, settings, context, (deadline, admission));
    let bytes = reader.read_all().await;
    span.end(bytes.as_ref().err().map(|error| error.code.name()));
    let bytes = bytes?;
    Ok(AdmittedBody { bytes, admission: reader.into_admission() })
}

/// The reservation of a message of another protocol, for the call that it leads to. It covers the bytes of the call's body,
/// which is part of the message. Stored in the extensions of the call's request. Clones share the reservation.
#[derive(Clone)]
pub(crate) struct HandedAdmission(Arc<Mutex<Option<Admission>>>);

impl HandedAdmission {
    pub(crate) fn new(admission: Admission) -> Self {
        Self(Arc::new(Mutex::new(Some(admission))))
    }

    fn take(&self) -> Option<Admission> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Admits, reads and parses a request. If the request head or admission control rejects a request, no byte of its body
/// is read.
///
/// # Errors
/// The errors of [`Head::check`], admission control, [`BodyReader`] and the parsers.
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
    let handed = parts.extensions.get::<HandedAdmission>().and_then(HandedAdmission::take);
    let is_handed = handed.is_some();
    let declared_bytes = head.declared_bytes.unwrap_or(0);
    let mut admission = if let Some(admission) = handed {
        admission
    } else {
        let client = state.access().client_id(&parts.extensions, context);
        services.engine.admit(client, declared_bytes, deadline)?
    };
    if mutations::is_active(Mutation::DeclaredBodiesReserveCapacity) {
        admission.reserve(1, 1)?;
        admission.reserve_bytes(declared_bytes)?;
    }
    // Some bodies are parsed while they are read.
    let span = context.spans.open("read");
    let mut reader = BodyReader::new(body, &head, settings, context, (deadline, admission));
    reader.is_reserved = is_handed;
    let parse = async {
        match &head.encoding {
            Encoding::Json { only_ascii } => {
                let body = reader.read_all().await?;
                json::parse_body(body, *only_ascii, (state.jobs(), reader.admission())).await
            }
            Encoding::Multipart { boundary } => {
                multipart::parse(boundary, &mut reader, settings).await
            }
            Encoding::Raw { declares_image } => {
                let image = reader.read_all().await?;
                let image = (*declares_image || !image.is_empty()).then_some(image);
                raw::parse(parts.uri.query(), image, settings)
            }
        }
    };
    let request = parse.await;
    span.end(request.as_ref().err().map(|error: &ApiError| error.code.name()));
    let request = request?;
    Ok(AdmittedRequest { request, admission: reader.into_admission() })
}

/// Returns the error for an image file of more than `max` bytes. The rest of the body may be unread, so the connection
/// closes.
fn image_file_too_large(field: &str, max: usize) -> ApiError {
    let detail = format!("an image file may have at most {max} bytes (/info shows the limits)");
    ApiError::field(Code::PayloadTooLarge, field, detail).close_connection()
}
