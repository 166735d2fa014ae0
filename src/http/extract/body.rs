//! Reads a request body and enforces its limits: the numbers of bytes and frames, the pause between frames, the total
//! time, and the number of bytes that admission control grants.
//!
//! Frames are copied as they arrive. Otherwise a body that arrives in 1-byte chunks would keep a whole read buffer
//! alive for each chunk.

use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;

use super::head::{Head, body_too_large};
use crate::engine::Admission;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::middleware::load_shedding::connections_full;
use crate::http::settings::HttpSettings;
use crate::input;
use crate::mutations::{self, Mutation};
use crate::platform;

/// Maximum number of bytes that are allocated before any of the body has arrived. Whenever the arriving data needs more
/// space, the buffer doubles.
const FIRST_ALLOCATION: u64 = 64 << 10;

/// The error that ends the reading of a body when its connection must close to make room for other connections.
#[derive(Debug, thiserror::Error)]
#[error("the connection has to make room for others")]
pub(crate) struct ClosedToMakeRoom;

/// A request body that is being read, with the limits that apply to it.
pub(crate) struct BodyReader<'a> {
    body: Body,
    settings: &'a HttpSettings,
    context: &'a RequestContext,
    admission: Admission,
    declared_bytes: Option<u64>,
    /// Time by which the request must be answered.
    deadline: Instant,
    /// Time by which the whole body must have arrived.
    body_deadline: Instant,
    bytes: u64,
    frames: usize,
    /// True if the reservation already covers the body.
    pub(super) is_reserved: bool,
    /// Why reading failed. `multipart` reads the body as a stream whose error type cannot hold an [`ApiError`], so
    /// `multipart` stores the error here.
    pub(crate) failure: Option<ApiError>,
}

impl<'a> BodyReader<'a> {
    /// Creates a reader at the beginning of `body`. `body_total_timeout` starts now.
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
            body_deadline: platform::now() + settings.connections.body_total_timeout,
            bytes: 0,
            frames: 0,
            is_reserved: false,
            failure: None,
        }
    }

    /// Returns the call's reservation.
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Returns the call's reservation, which now includes the bytes that were read.
    pub(crate) fn into_admission(self) -> Admission {
        self.admission
    }

    /// Returns the next piece of the body, which is never empty; `None` at the end of the body.
    ///
    /// # Errors
    /// `payload_too_large`, `request_timeout`, `deadline_exceeded`, `overloaded`; `invalid_request` if the body ends
    /// early.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let Some(frame) = self.frame().await? else { return Ok(None) };
            self.frames += 1;
            if self.frames > self.settings.limits.max_body_frames {
                let detail = "the body arrives in too many small pieces; send larger chunks";
                return Err(ApiError::new(Code::PayloadTooLarge, detail).close_connection());
            }
            if !frame.is_empty() {
                self.account(frame.len() as u64)?;
                return Ok(Some(frame));
            }
        }
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// The errors of [`next`](Self::next); `overloaded` if there is no memory for it.
    pub(crate) async fn read_all(&mut self) -> Result<Bytes, ApiError> {
        let expected = self.declared_bytes.unwrap_or(0).min(FIRST_ALLOCATION);
        let mut whole = Vec::new();
        make_room(&mut whole, expected as usize)?;
        while let Some(piece) = self.next().await? {
            make_room(&mut whole, piece.len())?;
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
        if self.is_reserved || mutations::is_active(Mutation::DeclaredBodiesReserveCapacity) {
            return Ok(());
        }
        // Reserve the bytes that arrived, not the number that `Content-Length` declares: a client that declares much
        // and sends nothing must not hold a reservation.
        self.admission
            .reserve_bytes(length)
            .map_err(|error| ApiError::from(error).close_connection())
    }

    /// Reads the next data frame; `None` at the end of the body. Returns a trailer frame as an empty data frame.
    async fn frame(&mut self) -> Result<Option<Bytes>, ApiError> {
        let idle = platform::now() + self.settings.connections.body_idle_timeout;
        let limit = idle.min(self.body_deadline).min(self.deadline);
        let frame = tokio::time::timeout_at(limit.into(), self.body.frame()).await;
        let broken = crate::faults::at("http::body");
        match frame {
            Ok(Some(_)) if broken => Err(broken_body()),
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) if is_closed_to_make_room(&error) => Err(connections_full()),
            Ok(Some(Err(_))) => Err(broken_body()),
            Err(_) if limit == self.deadline => {
                Err(ApiError::deadline_exceeded().close_connection())
            }
            Err(_) => {
                let detail = "the body did not arrive in time; send it again, faster or smaller";
                Err(ApiError::new(Code::RequestTimeout, detail).close_connection())
            }
        }
    }
}

/// Makes room for more bytes of a body. The rest of the body will not be read if there is none, so the connection closes.
///
/// # Errors
/// `overloaded`.
pub(super) fn make_room(buffer: &mut Vec<u8>, additional: usize) -> Result<(), ApiError> {
    input::reserve(buffer, additional).map_err(|error| ApiError::from(error).close_connection())
}

/// True if [`ClosedToMakeRoom`] is among the causes of `error`.
pub(crate) fn is_closed_to_make_room(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<ClosedToMakeRoom>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn broken_body() -> ApiError {
    ApiError::invalid("the body ended before it was complete; send it again").close_connection()
}
