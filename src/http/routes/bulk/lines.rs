//! Reads the lines of a bulk request. The limits on size and time apply to each line, not to the body.
//!
//! One request holds at most one line that has not been taken over by its call, and the piece of the body that arrived
//! with its end. The number of requests with a turn is limited, and a request without one holds at most [`LITTLE`] bytes,
//! so these bytes need no reservation. While there is no room for a line, nothing is read, so that TCP slows the client
//! down (backpressure).

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::{StreamExt, future};
use http_body_util::BodyExt;

use crate::engine::Admission;
use crate::http::context::{BulkConnection, RequestContext};
use crate::http::error::{ApiError, Code};
use crate::http::extract::body::is_closed_to_make_room;
use crate::http::middleware::load_shedding::connections_full;
use crate::http::settings::HttpSettings;
use crate::input;
use crate::mutations::{self, Mutation};
use crate::platform;

/// Interval at which a request that waits for its client looks whether its turn is over.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Time for which the rest of a request is read that ended early, and the longest pause in it. A shutdown cuts requests a
/// second after its drain time.
const DISCARDING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// Number of bytes that a request without a turn may hold.
const LITTLE: usize = 64 << 10;

/// Lets a client send its body that waits for `100 Continue` before it does so (RFC 9110, section 10.1.1). hyper writes
/// that line when the body is read for the first time, and cannot write it behind the head of the response, which /bulk
/// sends at once.
pub(super) async fn ask_for(body: Body, headers: &HeaderMap) -> Body {
    if !headers.contains_key(header::EXPECT) {
        return body;
    }
    let mut pieces = body.into_data_stream().peekable();
    let _ = future::poll_immediate(std::pin::Pin::new(&mut pieces).peek()).await;
    // The task of the connection writes the line before it goes on here.
    tokio::task::yield_now().await;
    Body::from_stream(pieces)
}

/// Reads lines from a body.
pub(super) struct LineReader<'a> {
    body: Body,
    settings: &'a HttpSettings,
    context: &'a RequestContext,
    /// The admission of the request, of which lines are parts.
    admission: Admission,
    connection: BulkConnection,
    buffer: Vec<u8>,
    /// Number of bytes at the beginning of `buffer` that belong to lines that were returned.
    taken: usize,
    /// Number of bytes at the beginning of `buffer` that hold no further line break.
    searched: usize,
    /// Number of lines that have been read.
    number: u64,
    bytes_in: u64,
    /// Time that was spent waiting for the rest of the current line.
    reading: Duration,
    /// When the last line was returned.
    idle_since: Instant,
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
        (admission, connection): (Admission, BulkConnection),
    ) -> Self {
        Self {
            body,
            settings,
            context,
            admission,
            connection,
            buffer: Vec::new(),
            taken: 0,
            searched: 0,
            number: 0,
            bytes_in: 0,
            reading: Duration::ZERO,
            idle_since: platform::now(),
            skipping: false,
            ended: false,
        }
    }

    /// Returns the admission of the request, of which lines are parts.
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// True if only few bytes are held, so that the request can wait without its turn.
    pub(super) fn holds_little(&self) -> bool {
        self.buffer.len() - self.taken <= LITTLE
    }

    /// Frees the memory of lines that were returned.
    pub(super) fn release(&mut self) {
        self.buffer.drain(..self.taken);
        self.buffer.shrink_to_fit();
        self.searched -= self.taken;
        self.taken = 0;
    }

    /// Notes that the server reads on after a pause of its own.
    pub(super) fn resume(&mut self) {
        self.idle_since = platform::now();
    }

    /// Returns the next line that has already arrived completely. Empty lines are skipped.
    pub(super) fn buffered(&mut self) -> Option<Line> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            let Some(found) = found else {
                self.searched = self.buffer.len();
                return self.too_long();
            };
            let (begin, end) = (self.taken, self.searched + found);
            self.taken = end + 1;
            self.searched = end + 1;
            if let Some(line) = self.finish(begin, end) {
                return Some(line);
            }
        }
    }

    /// Reads until a line is complete; `None` if the turn of the request is over first, as `is_over` says.
    pub(super) async fn next(&mut self, is_over: impl Fn() -> bool) -> Option<Read> {
        loop {
            if let Some(line) = self.buffered() {
                return Some(Read::Line(line));
            }
            if self.ended {
                // The last line needs no line break.
                let (begin, end) = (self.taken, self.buffer.len());
                self.taken = end;
                return Some(self.finish(begin, end).map_or(Read::End, Read::Line));
            }
            if self.holds_little() && is_over() {
                return None;
            }
            match self.frame(&is_over).await {
                Ok(Frame::Data(frame)) => {
                    if let Err(error) = self.append(&frame) {
                        return Some(Read::Broken(error));
                    }
                }
                Ok(Frame::End) => self.ended = true,
                Ok(Frame::TurnOver) => return None,
                Err(error) => return Some(Read::Broken(error)),
            }
        }
    }

    /// Reads and drops what the client still sends: to the end of the body, or until nothing has come for a while from a
    /// client that is not blocked, but not for longer than [`DISCARDING`].
    pub(super) async fn discard(&mut self) {
        if mutations::is_active(Mutation::EndedBulkRequestsReadNothing) {
            return;
        }
        self.buffer = Vec::new();
        let end = platform::now() + DISCARDING;
        while platform::now() < end {
            match tokio::time::timeout(PAUSE, self.body.frame()).await {
                Ok(Some(Ok(_))) => {}
                Err(_) if self.connection.is_stalled() => {}
                Ok(None | Some(Err(_))) | Err(_) => return,
            }
        }
    }

    /// Makes a line of this part of the buffer, unless it is empty or the end of a line that was too long.
    fn finish(&mut self, begin: usize, end: usize) -> Option<Line> {
        self.reading = Duration::ZERO;
        if std::mem::take(&mut self.skipping) {
            return None;
        }
        self.number += 1;
        let line = &self.buffer[begin..end];
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let bytes =
            if line.len() > self.max() { Err(line_too_long(self.max())) } else { copied(line) };
        self.idle_since = platform::now();
        Some(Line { number: self.number, bytes })
    }

    /// Gives up an unfinished line that is too long, and begins to skip the rest of it.
    fn too_long(&mut self) -> Option<Line> {
        if self.buffer.len() - self.taken <= self.max() && !self.skipping {
            return None;
        }
        (self.buffer, self.taken, self.searched) = (Vec::new(), 0, 0);
        if std::mem::replace(&mut self.skipping, true) {
            return None;
        }
        self.number += 1;
        Some(Line { number: self.number, bytes: Err(line_too_long(self.max())) })
    }

    fn max(&self) -> usize {
        self.settings.bulk.max_line_bytes
    }

    /// Appends a piece of the body. Only an unfinished line is left in the buffer then.
    fn append(&mut self, frame: &[u8]) -> Result<(), ApiError> {
        self.bytes_in += frame.len() as u64;
        self.context.note(|notes| notes.bytes_in = self.bytes_in);
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        input::reserve(&mut self.buffer, frame.len())?;
        self.buffer.extend_from_slice(frame);
        Ok(())
    }

    /// Reads the next data frame. `is_over` says whether the turn of the request is over; it is asked once a second if no
    /// data comes, while the request holds little.
    async fn frame(&mut self, is_over: impl Fn() -> bool) -> Result<Frame, ApiError> {
        let connections = &self.settings.connections;
        let idle_timeout = self.settings.bulk.idle_timeout;
        let in_line = self.buffer.len() > self.taken || self.skipping;
        let begin = platform::now();
        let left = connections.body_total_timeout.saturating_sub(self.reading);
        loop {
            // Between two lines a client may pause longer than within one. The time in which the server itself does not
            // read does not count.
            let limit = if in_line {
                begin + left.min(connections.body_idle_timeout)
            } else {
                self.idle_since + idle_timeout
            };
            let began = platform::now();
            let look = limit.min(began + LOOK);
            let frame = tokio::time::timeout_at(look.into(), self.body.frame()).await;
            if in_line {
                self.reading += platform::elapsed(began);
            }
            match frame {
                Ok(None) => return Ok(Frame::End),
                Ok(Some(Ok(frame))) => {
                    return Ok(Frame::Data(frame.into_data().unwrap_or_default()));
                }
                Ok(Some(Err(error))) if is_closed_to_make_room(&error) => {
                    return Err(connections_full());
                }
                Ok(Some(Err(_))) => {
                    let detail = "the body ended before it was complete; send the lines without an answer again";
                    return Err(ApiError::invalid(detail));
                }
                Err(_) if self.holds_little() && is_over() => return Ok(Frame::TurnOver),
                Err(_) if platform::now() < limit => {}
                // The client may be waiting for the answers to its lines.
                Err(_) if !in_line && self.connection.is_working() => {
                    self.idle_since = platform::now();
                }
                Err(_) => {
                    let detail =
                        "the next line did not arrive in time; send it again in a new request";
                    return Err(ApiError::new(Code::RequestTimeout, detail));
                }
            }
        }
    }
}

/// What was read of the body.
enum Frame {
    Data(Bytes),
    End,
    /// Nothing: the turn of the request is over.
    TurnOver,
}

fn copied(line: &[u8]) -> Result<Bytes, ApiError> {
    let mut copy = Vec::new();
    input::reserve(&mut copy, line.len())?;
    copy.extend_from_slice(line);
    Ok(copy.into())
}

fn line_too_long(max: usize) -> ApiError {
    let detail = format!("a line may have at most {max} bytes (bulk.max_line_bytes)");
    ApiError::new(Code::PayloadTooLarge, detail)
}
