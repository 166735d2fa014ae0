//! Reads the lines of a bulk request. The limits on size and time apply to each line, not to the body. The bytes that
//! have been read are reserved as they arrive; while there is no room for more, nothing is read, so that TCP slows the
//! client down (backpressure).

use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::engine::Admission;
use crate::http::context::RequestContext;
use crate::http::error::{ApiError, Code};
use crate::http::extract::body::is_closed_to_make_room;
use crate::http::middleware::load_shedding::connections_full;
use crate::http::settings::HttpSettings;
use crate::input;
use crate::platform;

/// Reads lines from a body.
pub(super) struct LineReader<'a> {
    body: Body,
    settings: &'a HttpSettings,
    context: &'a RequestContext,
    /// Holds the bytes of `buffer`.
    admission: Admission,
    buffer: Vec<u8>,
    /// Number of bytes of `buffer` that are known to hold no line break.
    searched: usize,
    /// Number of lines that have been read.
    number: u64,
    bytes_in: u64,
    /// When the first byte of the unfinished line in `buffer` arrived.
    line_began: Option<Instant>,
    /// True while the rest of a line that is too long is being skipped.
    skipping: bool,
    ended: bool,
}

/// A line, or the error that takes its place.
pub(super) struct Line {
    /// Number of the line, from 1.
    pub(super) number: u64,
    pub(super) bytes: Result<Bytes, ApiError>,
}

/// What was read next.
pub(super) enum Read {
    Line(Line),
    /// The body has ended.
    End,
    /// The body cannot be read any further.
    Broken(ApiError),
}

impl<'a> LineReader<'a> {
    pub(super) fn new(
        body: Body,
        settings: &'a HttpSettings,
        context: &'a RequestContext,
        admission: Admission,
    ) -> Self {
        Self {
            body,
            settings,
            context,
            admission,
            buffer: Vec::new(),
            searched: 0,
            number: 0,
            bytes_in: 0,
            line_began: None,
            skipping: false,
            ended: false,
        }
    }

    /// Returns the admission of the request, of which lines are parts.
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Releases the bytes of the lines that were returned.
    pub(super) fn release_lines(&self) {
        self.admission.set_bytes(self.buffer.len() as u64);
    }

    /// Returns the next line that has already arrived completely. Empty lines are skipped.
    pub(super) fn buffered(&mut self) -> Option<Line> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            let Some(found) = found else {
                self.searched = self.buffer.len();
                return self.too_long();
            };
            let end = self.searched + found;
            let rest = self.buffer.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            line.truncate(end);
            self.searched = 0;
            self.line_began = (!self.buffer.is_empty()).then(platform::now);
            if let Some(line) = self.finish(line) {
                return Some(line);
            }
        }
    }

    /// Reads until a line is complete.
    pub(super) async fn next(&mut self) -> Read {
        loop {
            if let Some(line) = self.buffered() {
                return Read::Line(line);
            }
            if self.ended {
                // The last line needs no line break.
                let line = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return self.finish(line).map_or(Read::End, Read::Line);
            }
            match self.frame().await {
                Ok(Some(frame)) => {
                    if let Err(error) = self.append(&frame).await {
                        return Read::Broken(error);
                    }
                }
                Ok(None) => self.ended = true,
                Err(error) => return Read::Broken(error),
            }
        }
    }

    /// Makes a line of these bytes, unless they are empty or the end of a line that was too long.
    fn finish(&mut self, mut line: Vec<u8>) -> Option<Line> {
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            self.number += u64::from(!self.ended || !line.is_empty());
            return None;
        }
        self.number += 1;
        let bytes = if line.len() > self.max() {
            Err(line_too_long(self.max()))
        } else {
            line.shrink_to_fit();
            Ok(line.into())
        };
        Some(Line { number: self.number, bytes })
    }

    /// Gives up an unfinished line that is too long, and begins to skip the rest of it.
    fn too_long(&mut self) -> Option<Line> {
        if self.buffer.len() <= self.max() && !self.skipping {
            return None;
        }
        self.buffer = Vec::new();
        self.searched = 0;
        self.admission.set_bytes(0);
        if std::mem::replace(&mut self.skipping, true) {
            return None;
        }
        self.number += 1;
        Some(Line { number: self.number, bytes: Err(line_too_long(self.max())) })
    }

    fn max(&self) -> usize {
        self.settings.bulk.max_line_bytes
    }

    async fn append(&mut self, frame: &[u8]) -> Result<(), ApiError> {
        self.bytes_in += frame.len() as u64;
        self.context.note(|notes| notes.bytes_in = self.bytes_in);
        if frame.is_empty() {
            return Ok(());
        }
        self.admission.reserve_when_room(0, 0, frame.len() as u64).await?;
        input::reserve(&mut self.buffer, frame.len())?;
        self.buffer.extend_from_slice(frame);
        self.line_began.get_or_insert_with(platform::now);
        Ok(())
    }

    /// Reads the next data frame; `None` at the end of the body.
    async fn frame(&mut self) -> Result<Option<Bytes>, ApiError> {
        let connections = &self.settings.connections;
        let now = platform::now();
        // Between two lines a client may pause longer than within one.
        let limit = match self.line_began {
            None => now + self.settings.bulk.idle_timeout,
            Some(began) => (now + connections.body_idle_timeout)
                .min(began + connections.body_total_timeout.max(Duration::from_millis(1))),
        };
        match tokio::time::timeout_at(limit.into(), self.body.frame()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) if is_closed_to_make_room(&error) => Err(connections_full()),
            Ok(Some(Err(_))) => {
                let detail =
                    "the body ended before it was complete; send the lines without an answer again";
                Err(ApiError::invalid(detail))
            }
            Err(_) => {
                let detail = "the next line did not arrive in time; send it again in a new request";
                Err(ApiError::new(Code::RequestTimeout, detail))
            }
        }
    }
}

fn line_too_long(max: usize) -> ApiError {
    let detail = format!("a line may have at most {max} bytes (bulk.max_line_bytes)");
    ApiError::new(Code::PayloadTooLarge, detail)
}
