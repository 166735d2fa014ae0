//! How a decode is ended from outside, when nobody wants its picture any more. Decoders of our own ask between rows;
//! those of the `image` crate cannot be asked, so their reader asks for them.

use std::cell::Cell;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use super::InputError;

/// Asked again and again while a picture is decoded, thousands of times a second: true ends the work. It must be cheap.
pub type Stop<'a> = &'a dyn Fn() -> bool;

/// The work was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

impl From<Stopped> for InputError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// # Errors
/// [`Stopped`] where the work is to end.
pub(super) fn check(stop: Stop<'_>) -> Result<(), Stopped> {
    if stop() { Err(Stopped) } else { Ok(()) }
}

/// Bytes that a decoder is given at a time. A piece of a GIF becomes three million pixels at most, one of a PNG a million
/// bytes: some milliseconds.
const PIECE_BYTES: usize = 1 << 10;
/// Most times that a decoder asks for bytes between two questions: some ask for each pixel, and a PNG's for each 8 KB of
/// pixels, however few bytes of the file these are.
const READS: u32 = 64;

/// A file for decoders of the `image` crate. Reading fails once the work is to end.
pub(super) struct StoppableFile<'f> {
    file: Cursor<&'f [u8]>,
    stop: Stop<'f>,
    /// Set when reading was ended: an error of the decoder then means nothing else.
    stopped: &'f Cell<bool>,
    /// Reads since the last question, and bytes until the next.
    reads: u32,
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
            io::Error::other("the picture is not wanted any more")
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
