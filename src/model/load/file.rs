//! One file of a checkpoint, on disk or embedded in the binary (the demo models).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::document::{self, DocumentError};

/// Location of one file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// A file on disk, by its path.
    OnDisk(PathBuf),
    /// A file embedded in the binary.
    InBinary {
        /// Path in the source tree, which messages show.
        path: &'static str,
        /// The whole content of the file.
        bytes: &'static [u8],
    },
}

impl From<PathBuf> for File {
    fn from(path: PathBuf) -> Self {
        Self::OnDisk(path)
    }
}

impl File {
    /// Path for messages; its last segment tells what kind of file it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::InBinary { path, .. } => Path::new(path),
        }
    }

    /// Reads the whole file; the bytes of an embedded file are not copied.
    pub(in crate::model) fn read(&self) -> Result<Cow<'static, [u8]>, DocumentError> {
        match self {
            Self::OnDisk(path) => document::read(path).map(Cow::Owned),
            Self::InBinary { bytes, .. } => Ok(Cow::Borrowed(bytes)),
        }
    }
}
