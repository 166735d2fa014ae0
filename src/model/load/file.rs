//! One file of a checkpoint, on disk or embedded in the binary (the demo models).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::document::{self, DocumentError};

/// A file of a checkpoint, on disk or embedded in the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// A file on disk, at this path.
    OnDisk(PathBuf),
    /// A file embedded in the binary.
    InBinary {
        /// Path in the source tree, for messages.
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
    /// Returns the path to show in messages. The last component of the path says which file of a checkpoint it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::InBinary { path, .. } => Path::new(path),
        }
    }

    /// Returns the content of the file. The bytes of an embedded file are not copied.
    pub(in crate::model) fn read(&self) -> Result<Cow<'static, [u8]>, DocumentError> {
        match self {
            Self::OnDisk(path) => document::read(path).map(Cow::Owned),
            Self::InBinary { bytes, .. } => Ok(Cow::Borrowed(bytes)),
        }
    }
}
