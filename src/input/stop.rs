//! Cancels a decode whose result nobody is waiting for any more. Our own decoders poll a [`Stop`] callback between
//! rows. Decoders of the `image` crate cannot poll it; instead, the reader from which they read the file polls it.

use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use super::InputError;

/// A cancellation check: if it returns true, decoding ends. It must be cheap, because a decoder calls it thousands of
/// times a second.
pub type Stop<'a> = &'a dyn Fn() -> bool;

/// Error: the [`Stop`] callback cancelled the decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

impl From<Stopped> for InputError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Polls `stop` once.
///
/// # Errors
/// [`Stopped`] if `stop` returns true.
pub(super) fn check(stop: Stop<'_>) -> Result<(), Stopped> {
    if stop() { Err(Stopped) } else { Ok(()) }
}

/// Maximum size in bytes of a buffered read, and number of bytes after which the reader polls. That many bytes of a GIF
/// expand to at most three million pixels; that many bytes of a PNG expand to at most a million bytes. Decoding either
/// amount takes a few milliseconds.
const PIECE_BYTES: usize = 1 << 10;
/// Maximum number of reads between two polls. Counting bytes is not enough: some decoders issue a read for each pixel,
/// and the PNG decoder issues one for each 8 KB of pixels, even if the pixels take up few bytes of the file.
const READS: u32 = 64;

/// A file as the input of a decoder of the `image` crate. Once `stop` returns true, reads fail.
pub(super) struct StoppableFile<'f> {
    file: Cursor<&'f [u8]>,
    stop: Stop<'f>,
    /// Set to true if a read failed because of `stop`. In that case, the decoder's error says nothing about the file.
    stopped: &'f Cell<bool>,
    /// Number of reads since the last poll.
    reads: u32,
    /// Number of bytes that may be read before the next poll.
    bytes_left: usize,
}

impl<'f> StoppableFile<'f> {
    pub(super) fn new(file: &'f [u8], stop: Stop<'f>, stopped: &'f Cell<bool>) -> Self {
        Self { file: Cursor::new(file), stop, stopped, reads: 0, bytes_left: 0 }
    }

    fn check(&mut self) -> io::Result<()> {
        self.reads += 1;
        if self.bytes_left > 0 && self.reads < READS {
            return Ok(());
        }
        (self.reads, self.bytes_left) = (0, PIECE_BYTES);
        check(self.stop).map_err(|Stopped| {
            self.stopped.set(true);
            io::Error::other("decoding was cancelled")
        })
    }
}

impl Read for StoppableFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let read = self.file.read(buffer)?;
        self.bytes_left = self.bytes_left.saturating_sub(read);
        Ok(read)
    }
}

impl BufRead for StoppableFile<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        let rest = self.file.fill_buf()?;
        Ok(&rest[..rest.len().min(PIECE_BYTES)])
    }

    fn consume(&mut self, amount: usize) {
        self.file.consume(amount);
        self.bytes_left = self.bytes_left.saturating_sub(amount);
    }
}

impl Seek for StoppableFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
