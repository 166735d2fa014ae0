//! Reads a request's body within its bounds: bytes, frames, pauses, time, and what the engine has room for.
//!
//! Frames are copied as they come: a body of 1-byte chunks would otherwise keep a whole read buffer alive for each.

use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::head::{Head, body_too_large};
use crate::engine::Admission;
use crate::http::connection::MadeRoom;
use crate::http::error::{ApiError, Code};
use crate::http::middleware::context::RequestContext;
use crate::http::middleware::room::no_room;
use crate::http::settings::HttpSettings;

/// Most bytes allocated before they arrive; more are added as they come, twice as many each time.
const FIRST_ALLOCATION: u64 = 64 << 10;

/// A body being read.
pub(crate) struct BodyReader<'a> {
    body: Body,
    settings: &'a HttpSettings,
    context: &'a RequestContext,
    admission: Admission,
    declared_bytes: Option<u64>,
    /// The request's own deadline.
    deadline: Instant,
    /// When the body must have arrived.
    body_deadline: Instant,
    bytes: u64,
    frames: usize,
    /// Why reading failed, for parsers that see the body only as a stream.
    pub(crate) failure: Option<ApiError>,
}

impl<'a> BodyReader<'a> {
    /// A reader at the body's beginning; its time runs from now.
    pub(crate) fn new(
        body: Body,
        head: &Head,
        settings: &'a HttpSettings,
        context: &'a RequestContext,
        (deadline, admission): (Instant, Admission),
    ) -> Self {
        Self {
            body,
            settings,
            context,
            admission,
            declared_bytes: head.declared_bytes,
            deadline,
            body_deadline: Instant::now() + settings.connections.body_total_timeout,
            bytes: 0,
            frames: 0,
            failure: None,
        }
    }

    /// The room that was reserved, once the body has been read.
    pub(crate) fn into_admission(self) -> Admission {
        self.admission
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// `payload_too_large`, `request_timeout`, `deadline_exceeded`, `overloaded`, `invalid_request` when the
    /// stream breaks.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let Some(frame) = self.frame().await? else { return Ok(None) };
            self.frames += 1;
            if self.frames > self.settings.limits.max_body_frames {
                let detail = "the body arrives in too many small pieces; send larger chunks";
                return Err(ApiError::new(Code::PayloadTooLarge, detail).closing());
            }
            if !frame.is_empty() {
                self.account(frame.len() as u64)?;
                return Ok(Some(frame));
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(crate) async fn read_all(&mut self) -> Result<Bytes, ApiError> {
        let expected = self.declared_bytes.unwrap_or(0).min(FIRST_ALLOCATION);
        let mut whole = Vec::with_capacity(expected as usize);
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    fn account(&mut self, length: u64) -> Result<(), ApiError> {
        self.bytes += length;
        self.context.note(|notes| notes.bytes_in = self.bytes);
        let max = self.settings.limits.max_body_bytes;
        if self.bytes > max {
            return Err(body_too_large(max));
        }
        // Not what was declared: a client that declares much and sends nothing must hold nothing.
        self.admission.reserve_bytes(length).map_err(|error| ApiError::from(error).closing())
    }

    /// The next data frame; trailers are passed over.
    async fn frame(&mut self) -> Result<Option<Bytes>, ApiError> {
        let idle = Instant::now() + self.settings.connections.body_idle_timeout;
        let limit = idle.min(self.body_deadline).min(self.deadline);
        let frame = tokio::time::timeout_at(limit.into(), self.body.frame()).await;
        let broken = crate::faults::at("http::body");
        match frame {
            Ok(Some(_)) if broken => Err(broken_body()),
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) if made_room(&error) => Err(no_room()),
            Ok(Some(Err(_))) => Err(broken_body()),
            Err(_) if limit == self.deadline => Err(ApiError::deadline_exceeded().closing()),
            Err(_) => {
                let detail = "the body did not arrive in time; send it again, faster or smaller";
                Err(ApiError::new(Code::RequestTimeout, detail).closing())
            }
        }
    }
}

/// Whether reading ended because the connection has to make room for others.
fn made_room(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<MadeRoom>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn broken_body() -> ApiError {
    ApiError::invalid("the body ended before it was complete; send it again").closing()
}
