//! One file of a checkpoint: on disk, or inside the binary (the demo models).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::model::error::LoadError;

/// How a file begins that stands for one in Git LFS.
pub(super) const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

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
    pub(in crate::model) fn read(&self) -> Result<Cow<'static, [u8]>, LoadError> {
        match self {
            Self::OnDisk(path) => match std::fs::read(path) {
                Ok(bytes) if bytes.starts_with(LFS_POINTER) => {
                    Err(LoadError::LfsPointer { path: path.clone() })
                }
                Ok(bytes) => Ok(Cow::Owned(bytes)),
                Err(source) => Err(LoadError::Read { path: path.clone(), source }),
            },
            Self::InBinary { bytes, .. } => Ok(Cow::Borrowed(bytes)),
        }
    }
}
