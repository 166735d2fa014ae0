//! The hub's cache on disk, in the layout of Python's `huggingface_hub`, so that Python tools and this server share
//! downloads:
//!
//! ```text
//! <cache>/models--owner--name/refs/<revision>              a commit, as text
//! <cache>/models--owner--name/blobs/<etag>                 a file's bytes (`<etag>.incomplete` while they arrive)
//! <cache>/models--owner--name/snapshots/<commit>/<file>    a link to its blob
//! <cache>/.locks/models--owner--name/<etag>.lock           held by the process that writes the blob
//! ```
//!
//! All names are checked before they reach this file: ids and revisions in `source`, commits and etags in `client`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::{HubError, HubSource};

/// Flags for opening a file: opening a symbolic link is an error, and opening a pipe does not block.
const NO_FOLLOW_NOR_WAIT: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// One repository's part of the cache.
pub(super) struct RepositoryCache {
    root: PathBuf,
    locks: PathBuf,
}

/// Exclusive lock (`flock`) for writing one blob. It is released on drop, and by the operating system when the process
/// dies.
pub(super) struct BlobLock(
    #[expect(dead_code, reason = "the lock lives as long as the open file")] fs::File,
);

impl RepositoryCache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// Returns the commit that the cache has for a revision: the revision itself if a snapshot has that name, otherwise
    /// the content of `refs/<revision>`.
    pub(super) fn commit(&self, source: &HubSource) -> Option<String> {
        let revision = source.revision();
        if self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let path = self.root.join("refs").join(revision);
        // Accept only a regular file: reading a pipe that somebody has planted would block for ever.
        if !fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        let commit = fs::read_to_string(&path).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Records the commit of a revision. Called last, so that an offline start finds only complete snapshots.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        let mut file = open_no_link(&path, |options| options.create(true).write(true))?;
        file.set_len(0).map_err(HubError::io("write", &path))?;
        file.write_all(commit.as_bytes()).map_err(HubError::io("write", &path))
    }

    /// Creates the snapshot's link from `file` to its blob. Accepts a link that another process has just created.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        create_parent(&link)?;
        let target = Path::new("../../blobs").join(etag);
        match symlink(&target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.exists() => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The link exists, but its blob has been deleted, so replace the link.
                fs::remove_file(&link).map_err(HubError::io("replace", &link))?;
                symlink(&target, &link).map_err(HubError::io("link", &link))
            }
            other => other.map_err(HubError::io("link", &link)),
        }
    }

    /// Waits until no other process writes this blob, and returns the lock. Dropping the future cancels the wait.
    pub(super) async fn lock(&self, etag: &str) -> Result<BlobLock, HubError> {
        const POLL: Duration = Duration::from_millis(200);
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = open_no_link(&path, |options| options.create(true).append(true))?;
        let mut waiting = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(BlobLock(file)),
                Err(Errno::WOULDBLOCK) => {
                    if !waiting {
                        tracing::info!(lock = %path.display(), "another process is downloading the same file; waiting for it");
                        waiting = true;
                    }
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => return Err(HubError::io("lock", &path)(error.into())),
            }
        }
    }
}

/// Opens a file of the cache with `options`. Rejects symbolic links, files with a second name (hard links) and
/// everything else that is not a regular file. Otherwise, somebody who plants such a file could make a download write
/// to a different file.
pub(super) fn open_no_link(
    path: &Path,
    options: impl FnOnce(&mut fs::OpenOptions) -> &mut fs::OpenOptions,
) -> Result<fs::File, HubError> {
    let refused = |what: &str| {
        let advice = format!("it {what}; delete it and try again");
        HubError::io("open", path)(io::Error::other(advice))
    };
    let opened = options(fs::OpenOptions::new().custom_flags(NO_FOLLOW_NOR_WAIT)).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            refused("is a symbolic link, where only a regular file belongs")
        }
        Some(code) if code == Errno::NXIO.raw_os_error() => refused("is not a file"),
        _ => HubError::io("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(HubError::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(refused("is not a file"));
    }
    if metadata.nlink() > 1 {
        return Err(refused(
            "has a second name (a hard link), so writing to it would change another file",
        ));
    }
    Ok(file)
}

/// Creates the parent directory of a path.
pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(HubError::io("create", parent))
}

/// True for a git commit id: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

/// True if all characters are lower-case hexadecimal digits.
pub(super) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
