//! Reads the directory of the zip archive and locates the bytes of its entries. Accepts only stored (uncompressed)
//! entries, the only kind that torch.save writes. So no entry is larger than the file.
//!
//! Source: PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16 and 4.5.3; torch always writes the 64-bit records too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{TorchError, shown};

/// Maximum number of entries. A checkpoint has one per tensor and a few more.
const MAX_ENTRIES: u64 = 1 << 16;
/// Maximum size of the central directory in bytes. An entry takes about 80 bytes of it, so 1,000 entries take about 80
/// KB.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Size in bytes of the end record, which every archive has. A comment may follow it.
const END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;
const END64_BYTES: usize = 56;
const MAX_COMMENT_BYTES: usize = 0xffff;
const LOCAL_HEADER_BYTES: usize = 30;
const DIRECTORY_HEADER_BYTES: usize = 46;
/// Id of the extra field with 64-bit sizes.
const ZIP64: u16 = 1;

/// An open archive whose central directory has been read.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    length: u64,
    entries: HashMap<String, ArchiveEntry>,
}

/// An entry as the central directory describes it.
#[derive(Debug)]
struct ArchiveEntry {
    /// Offset of the entry's local header in the file, in bytes.
    header: u64,
    size: u64,
    /// True if the entry is neither compressed nor encrypted, so that `size` can be checked against the file.
    stored: bool,
}

/// Position of an entry's bytes, all of which are inside the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteSpan {
    pub(super) start: u64,
    pub(super) size: u64,
}

impl Archive {
    /// Opens the file and reads its central directory.
    pub(super) fn open(path: &Path) -> Result<Self, TorchError> {
        let file = File::open(path).map_err(TorchError::Io)?;
        let length = file.metadata().map_err(TorchError::Io)?.len();
        let mut archive = Self { file, length, entries: HashMap::new() };
        let (start, bytes, entries) = archive.directory()?;
        for (what, count, limit) in [
            ("entries", entries, MAX_ENTRIES),
            ("bytes in its directory", bytes, MAX_DIRECTORY_BYTES),
        ] {
            if count > limit {
                return Err(TorchError::TooLarge { what, limit });
            }
        }
        let directory = archive.read(start, bytes as usize)?;
        let mut fields = RecordReader(&directory);
        for _ in 0..entries {
            let (name, entry) = read_entry(&mut fields).ok_or(TorchError::Damaged)?;
            // Duplicate names are rejected, because programs differ in which of the two entries they use.
            if archive.entries.insert(name, entry).is_some() {
                return Err(TorchError::Damaged);
            }
        }
        Ok(archive)
    }

    /// Returns the length of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads `bytes` bytes of the file at offset `start`; `Damaged` if the file does not have them.
    pub(super) fn read(&self, start: u64, bytes: usize) -> Result<Vec<u8>, TorchError> {
        // The range is checked before the buffer is allocated, because the numbers come from the file.
        if start.checked_add(bytes as u64).is_none_or(|end| end > self.length) {
            return Err(TorchError::Damaged);
        }
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, start).map_err(|error: Error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                return TorchError::Damaged;
            }
            TorchError::Io(error)
        })?;
        Ok(buffer)
    }

    /// Returns the position of the content of the entry with this name; `None` if there is no such entry.
    pub(super) fn find(&self, name: &str) -> Result<Option<ByteSpan>, TorchError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        if !entry.stored {
            return Err(TorchError::Compressed { entry: shown(name) });
        }
        let header = self.read(entry.header, LOCAL_HEADER_BYTES)?;
        let start = data_start(&header).and_then(|start| entry.header.checked_add(start));
        let end = start.and_then(|start| start.checked_add(entry.size));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.length => {
                Ok(Some(ByteSpan { start, size: entry.size }))
            }
            _ => Err(TorchError::Damaged),
        }
    }

    /// Finds the only entry whose name ends with `end`. Returns the part of its name before `end`, and the position of
    /// its content.
    pub(super) fn only_entry(&self, end: &str) -> Result<(String, ByteSpan), TorchError> {
        let mut names =
            self.entries.keys().filter_map(|name| Some((name, name.strip_suffix(end)?)));
        let (name, beginning) = names.next().ok_or(TorchError::NoStateDict)?;
        if names.next().is_some() {
            return Err(TorchError::Damaged);
        }
        let section = self.find(name)?.ok_or(TorchError::Damaged)?;
        Ok((beginning.to_owned(), section))
    }

    /// Returns the offset, length in bytes and number of entries of the central directory.
    fn directory(&self) -> Result<(u64, u64, u64), TorchError> {
        let longest = (END64_BYTES + LOCATOR_BYTES + END_BYTES + MAX_COMMENT_BYTES) as u64;
        let tail_start = self.length.saturating_sub(longest);
        let tail = self.read(tail_start, (self.length - tail_start) as usize)?;
        let end = find_end(&tail).ok_or(TorchError::Damaged)?;
        let locator = end.checked_sub(LOCATOR_BYTES).map(|start| &tail[start..end]);
        let found = match locator.and_then(read_locator) {
            Some(start) => read_end64(&self.read(start, END64_BYTES)?),
            None => read_end(&tail[end..]),
        };
        found.ok_or(TorchError::Damaged)
    }
}

/// Returns the offset of the end record in `tail`. It is the record whose comment ends exactly at the end of the file.
fn find_end(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(END_BYTES)?;
    (0..=last).rev().find(|&start| {
        let mut fields = RecordReader(&tail[start..]);
        fields.signature(*b"PK\x05\x06").is_some()
            && fields.skip(16).and_then(|()| fields.u16()).map(usize::from) == Some(last - start)
    })
}

fn read_end(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let mut fields = RecordReader(bytes);
    fields.signature(*b"PK\x05\x06")?;
    fields.skip(6)?;
    let entries = fields.u16()?;
    let (size, start) = (fields.u32()?, fields.u32()?);
    Some((start.into(), size.into(), entries.into()))
}

/// Returns the offset of the 64-bit end record.
fn read_locator(bytes: &[u8]) -> Option<u64> {
    let mut fields = RecordReader(bytes);
    fields.signature(*b"PK\x06\x07")?;
    fields.skip(4)?;
    fields.u64()
}

fn read_end64(bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let mut fields = RecordReader(bytes);
    fields.signature(*b"PK\x06\x06")?;
    fields.skip(28)?;
    let entries = fields.u64()?;
    let (size, start) = (fields.u64()?, fields.u64()?);
    Some((start, size, entries))
}

/// Reads one header of the central directory.
fn read_entry(fields: &mut RecordReader<'_>) -> Option<(String, ArchiveEntry)> {
    const ENCRYPTED: u16 = 1;
    const STORED: u16 = 0;
    let mut header = RecordReader(fields.take(DIRECTORY_HEADER_BYTES)?);
    header.signature(*b"PK\x01\x02")?;
    header.skip(4)?;
    let (flags, method) = (header.u16()?, header.u16()?);
    header.skip(8)?;
    let (packed, size) = (header.u32()?, header.u32()?);
    let (name, extra, comment) = (header.u16()?, header.u16()?, header.u16()?);
    header.skip(8)?;
    let offset = header.u32()?;
    let name = String::from_utf8(fields.take(name.into())?.to_vec()).ok()?;
    let extra = fields.take(extra.into())?;
    fields.skip(comment.into())?;
    let mut wide = wide_sizes(extra);
    let mut widened = |value: u32| match value {
        u32::MAX => wide.u64(),
        value => Some(value.into()),
    };
    let (size, packed, header) = (widened(size)?, widened(packed)?, widened(offset)?);
    let stored = method == STORED && flags & ENCRYPTED == 0 && packed == size;
    Some((name, ArchiveEntry { header, size, stored }))
}

/// Returns the 64-bit values in an entry's extra fields: one for each size or offset that does not fit into 32 bits.
fn wide_sizes(extra: &[u8]) -> RecordReader<'_> {
    let mut fields = RecordReader(extra);
    while let Some(field) = fields.extra_field() {
        if field.0 == ZIP64 {
            return RecordReader(field.1);
        }
    }
    RecordReader(&[])
}

/// Returns the number of bytes from the start of an entry's local header to its content.
fn data_start(header: &[u8]) -> Option<u64> {
    let mut fields = RecordReader(header);
    fields.signature(*b"PK\x03\x04")?;
    fields.skip(22)?;
    let (name, extra) = (fields.u16()?, fields.u16()?);
    Some(LOCAL_HEADER_BYTES as u64 + u64::from(name) + u64::from(extra))
}

/// The unread rest of a record with little-endian fields.
struct RecordReader<'a>(&'a [u8]);

impl<'a> RecordReader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes).map(|_| ())
    }

    fn signature(&mut self, expected: [u8; 4]) -> Option<()> {
        (self.take(4)? == expected).then_some(())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn extra_field(&mut self) -> Option<(u16, &'a [u8])> {
        let (id, size) = (self.u16()?, self.u16()?);
        Some((id, self.take(size.into())?))
    }
}
