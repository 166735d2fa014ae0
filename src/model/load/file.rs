//! One file of a checkpoint: on disk, or inside the binary (the demo models).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::document::{self, DocumentError};

/// Where one file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    /// On disk.
    OnDisk(PathBuf),
    /// In the binary.
    InBinary {
        /// What messages call it: its path in the source tree.
        path: &'static str,
        /// Its content.
        bytes: &'static [u8],
    },
}

impl From<PathBuf> for File {
    fn from(path: PathBuf) -> Self {
        Self::OnDisk(path)
    }
}

impl File {
    /// Where it is, for messages; its last segment tells what kind of file it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::InBinary { path, .. } => Path::new(path),
        }
    }

    /// All of it.
    pub(in crate::model) fn read(&self) -> Result<Cow<'static, [u8]>, DocumentError> {
        match self {
            Self::OnDisk(path) => document::read(path).map(Cow::Owned),
            Self::InBinary { bytes, .. } => Ok(Cow::Borrowed(bytes)),
        }
    }
}
