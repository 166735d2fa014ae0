//! Reads ranges of the file, each checked against the file's length before a buffer is allocated, and takes
//! little-endian fields from them.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::TensorFlowError;

/// Maximum number of metadata bytes that are read. Includes repeated reads of the same bytes, so it bounds the work for
/// a file that refers to the same structure again and again. 1,000 datasets and their groups take about 1.5 MB.
const MAX_METADATA_BYTES: u64 = 16 << 20;

/// An open file of known length.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    length: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, TensorFlowError> {
        let file = File::open(path).map_err(TensorFlowError::Io)?;
        let length = file.metadata().map_err(TensorFlowError::Io)?.len();
        Ok(Self { file, length })
    }

    /// Returns the length of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// True if the file has `bytes` bytes at offset `start`.
    pub(super) fn has(&self, start: u64, bytes: u64) -> bool {
        start.checked_add(bytes).is_some_and(|end| end <= self.length)
    }

    /// Reads `bytes` bytes at offset `start`; `Damaged` if the file does not have them.
    pub(super) fn read(&self, start: u64, bytes: u64) -> Result<Vec<u8>, TensorFlowError> {
        // The range is checked before the buffer is allocated, because the numbers come from the file.
        if !self.has(start, bytes) {
            return Err(TensorFlowError::Damaged);
        }
        let mut buffer = vec![0; bytes as usize];
        self.file.read_exact_at(&mut buffer, start).map_err(|error: Error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                return TensorFlowError::Damaged;
            }
            TensorFlowError::Io(error)
        })?;
        Ok(buffer)
    }
}

/// Reads metadata, within [`MAX_METADATA_BYTES`].
pub(super) struct MetadataReader<'a> {
    source: &'a Source,
    left: u64,
}

impl<'a> MetadataReader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, left: MAX_METADATA_BYTES }
    }

    pub(super) fn read(&mut self, start: u64, bytes: u64) -> Result<Vec<u8>, TensorFlowError> {
        if !self.source.has(start, bytes) {
            return Err(TensorFlowError::Damaged);
        }
        self.left = self.left.checked_sub(bytes).ok_or(TensorFlowError::TooLarge {
            what: "bytes of names and headers",
            limit: MAX_METADATA_BYTES,
        })?;
        self.source.read(start, bytes)
    }
}

/// The unread rest of a record with little-endian fields. A field that is not there is `Damaged`.
#[derive(Clone, Copy)]
pub(super) struct RecordReader<'a>(pub(super) &'a [u8]);

impl<'a> RecordReader<'a> {
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], TensorFlowError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(TensorFlowError::Damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), TensorFlowError> {
        self.take(bytes).map(|_| ())
    }

    /// Takes the four bytes that open a structure, and the version byte after them.
    pub(super) fn signature(
        &mut self,
        expected: [u8; 4],
        version: u8,
    ) -> Result<(), TensorFlowError> {
        let same = self.take(4)? == expected && self.u8()? == version;
        same.then_some(()).ok_or(TensorFlowError::Damaged)
    }

    pub(super) fn u8(&mut self) -> Result<u8, TensorFlowError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, TensorFlowError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, TensorFlowError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, TensorFlowError> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TensorFlowError> {
        self.take(N)?.try_into().map_err(|_| TensorFlowError::Damaged)
    }
}
