//! A stream wrapper that holds back the responses that hyper itself writes to malformed request heads (its automatic
//! answers).
//!
//! hyper offers no way to change or switch off these responses. Each has a status line, a few fixed fields and no body;
//! the status is, for example, `400 Bad Request`. The wrapper recognises them among the bytes that hyper writes,
//! because nothing else that this server writes is an error without a body and without an `x-request-id`. The wrapper
//! reports these bytes to hyper as written, and hyper then ends the connection with the parse error. `server` wraps
//! every stream in [`WithoutAutomaticAnswers`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum length of an automatic answer in bytes. The status line and three fields take about 120.
const MAX_BYTES: usize = 192;

/// A stream that passes on every byte except those of automatic answers. It stays open when hyper shuts it down: the
/// caller takes the inner stream back with [`into_parts`](Self::into_parts), may write another response, and closes the
/// inner stream.
pub(crate) struct WithoutAutomaticAnswers<S> {
    inner: S,
    suppressed: Option<SuppressedAnswer>,
}

/// Data of a suppressed hyper response that its replacement reuses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SuppressedAnswer {
    /// Value of the `date` field. hyper caches it, so the clock need not be read for each response.
    pub(crate) date: Option<String>,
}

impl SuppressedAnswer {
    fn of(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(answer);
        let date = text.split("\r\n").find_map(|line| line.strip_prefix("date: "));
        Self { date: date.map(str::to_owned) }
    }
}

impl<S> WithoutAutomaticAnswers<S> {
    /// Wraps a stream that hyper will write to.
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, suppressed: None }
    }

    /// Returns the inner stream, and the data of the automatic answer if one was suppressed.
    pub(crate) fn into_parts(self) -> (S, Option<SuppressedAnswer>) {
        (self.inner, self.suppressed)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WithoutAutomaticAnswers<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WithoutAutomaticAnswers<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match start_of_automatic_answer(bytes) {
            None => Pin::new(&mut self.inner).poll_write(context, bytes),
            Some(0) => {
                self.suppressed = Some(SuppressedAnswer::of(bytes));
                Poll::Ready(Ok(bytes.len()))
            }
            // First write the bytes before the automatic answer; they are the end of an earlier response.
            Some(start) => Pin::new(&mut self.inner).poll_write(context, &bytes[..start]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().any(|slice| start_of_automatic_answer(slice).is_some()) {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(context, first.map_or(&[], |slice| slice));
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
}

/// Returns the offset at which an automatic answer begins, if `bytes` end with one; otherwise `None`.
fn start_of_automatic_answer(bytes: &[u8]) -> Option<usize> {
    // Nearly every write returns here. Apart from automatic answers, only a head without a body, the last chunk of a
    // chunked body, or a body that happens to end with these bytes passes this check.
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = &bytes[bytes.len().saturating_sub(MAX_BYTES)..];
    let start = tail.windows(STATUS_LINE.len()).rposition(|window| window == STATUS_LINE)?;
    let head = std::str::from_utf8(&tail[start..]).ok()?;
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let status = lines.next()?.get(STATUS_LINE.len() + 2..)?;
    let is_error = status.starts_with('4');
    let is_automatic = |line: &str| {
        line == "connection: close" || line == "content-length: 0" || line.starts_with("date: ")
    };
    (is_error && lines.all(is_automatic)).then_some(bytes.len() - tail.len() + start)
}

/// The beginning of every HTTP/1 status line, up to the minor version.
const STATUS_LINE: &[u8] = b"HTTP/1.";

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const AUTOMATIC: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
        content-length: 0\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";

    #[test]
    fn only_an_error_without_body_and_without_fields_of_ours_is_automatic() {
        let start = |text: &str| start_of_automatic_answer(text.as_bytes());
        assert_eq!(start(AUTOMATIC), Some(0));
        assert_eq!(start(&AUTOMATIC.replace("HTTP/1.1", "HTTP/1.0")), Some(0));
        assert_eq!(start(&format!("{{\"a\": 1}}{AUTOMATIC}")), Some(8));
        let long = format!("{}{AUTOMATIC}", "x".repeat(1000));
        assert_eq!(start(&long), Some(1000));
        for other in [
            "",
            "\r\n\r\n",
            "0\r\n\r\n",
            "{\"a\": 1}",
            &AUTOMATIC.replace("431", "204"),
            &AUTOMATIC.replace("date:", "x-request-id: 1\r\ndate:"),
            &AUTOMATIC.replace("length: 0", "length: 10"),
            &format!("{AUTOMATIC}{{}}"),
        ] {
            assert_eq!(start(other), None, "{other:?}");
        }
    }

    #[tokio::test]
    async fn what_comes_before_it_is_written_and_it_is_not() {
        for vectored in [false, true] {
            let mut stream = WithoutAutomaticAnswers::new(io::Cursor::new(Vec::new()));
            let text = format!("the end{AUTOMATIC}");
            let mut left = text.as_bytes();
            while !left.is_empty() {
                let written = if vectored {
                    let slices = [IoSlice::new(b""), IoSlice::new(left)];
                    stream.write_vectored(&slices).await.unwrap()
                } else {
                    stream.write(left).await.unwrap()
                };
                left = &left[written..];
            }
            let (inner, suppressed) = stream.into_parts();
            let date = Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
            assert_eq!(suppressed, Some(SuppressedAnswer { date }));
            assert_eq!(inner.into_inner(), b"the end");
        }
    }
}
