//! Why weights could not be had. Texts are read by whoever starts the server: they say what to do next.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::DocumentError;

/// What to do where the hub cannot be reached.
const REACH: &str = "is there a network? Behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT, and with the files in the \
                     cache already HF_HUB_OFFLINE=1; or name a directory as the model";
/// How to do without the hub.
const ELSEWHERE: &str = "name a directory with the checkpoint's files as the model";

/// Why a source is not valid, a checkpoint not complete, or a download not possible.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// `[NAME=]SRC` cannot be read.
    #[error("\"{text}\" is not a model source: {reason}")]
    InvalidSource {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `demo` was asked for, and the feature `demo` was off when the binary was built.
    #[error(
        "no demo models are built into this binary; name a model: a hub id such as Salesforce/blip-image-captioning-large, or a directory"
    )]
    DemoNotBuilt,
    /// A demo model has no files: it is in the binary.
    #[error("{name} is inside this binary: there is nothing to download")]
    InsideTheBinary {
        /// Its name.
        name: &'static str,
    },
    /// The directory is not there.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// A directory lacks a file.
    #[error("{} has no {missing}; {hint}", directory.display())]
    MissingFile {
        /// Where it was looked for.
        directory: PathBuf,
        /// The file, or the alternatives.
        missing: String,
        /// What to do.
        hint: &'static str,
    },
    /// A small file of the checkpoint cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A weight index names no files, or files that it must not.
    #[error("{}: {reason}", path.display())]
    InvalidIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository has no file that is needed.
    #[error(
        "{id} at revision {revision} has no {missing}; it is not a BLIP checkpoint in transformers' layout"
    )]
    MissingInRepository {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The file, or the alternatives.
        missing: &'static str,
    },
    /// 401 or 403.
    #[error("the hub refused access to {id} ({status}): it is private or gated, or does not exist; {}",
        if *token_sent { "the token in HF_TOKEN may not read it" } else { "set HF_TOKEN to a token that may read it" })]
    Refused {
        /// The repository.
        id: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// 404.
    #[error(
        "{what} not found on the hub; check the spelling of the id (owner/name) and of the revision"
    )]
    NotFound {
        /// Repository, revision or file.
        what: String,
    },
    /// Offline, and the cache does not have it.
    #[error("{id} at revision {revision} is not (completely) in the cache {}: {reason}; unset HF_HUB_OFFLINE, or run `blip-server download {id}` where there is a network", cache.display())]
    NotCached {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The cache looked in.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// No connection, or cut connections up to the last attempt.
    #[error("{url} could not be read; {REACH}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The last failure.
        #[source]
        source: reqwest::Error,
    },
    /// A status that means neither success nor one of the above.
    #[error("{url} answered {status}; try again later, or {ELSEWHERE}")]
    UnexpectedStatus {
        /// What was asked for.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// An answer that the hub's protocol does not allow.
    #[error(
        "{url} gave an answer that was not understood: {reason}; is HF_ENDPOINT a hub of Hugging Face or a mirror of it, and no \
         proxy's page in between? Otherwise {ELSEWHERE}"
    )]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection ended before the file did.
    #[error(
        "the download of {file} ended after {got} of {size} bytes; run the same command again: the download resumes"
    )]
    CutShort {
        /// The file.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes of the whole file.
        size: u64,
    },
    /// The downloaded bytes are not those that the hub announced.
    #[error(
        "{file} is damaged: its {algorithm} is {actual}, the hub announced {expected}; what was downloaded has been deleted, try again"
    )]
    WrongChecksum {
        /// The file.
        file: String,
        /// `SHA-256`, or `git SHA-1` of small files.
        algorithm: &'static str,
        /// From the hub.
        expected: String,
        /// Of the bytes received.
        actual: String,
    },
    /// The HTTP client could not be made.
    #[error(
        "the HTTP client could not be made; install root certificates (the package ca-certificates), or {ELSEWHERE}"
    )]
    Client(#[source] reqwest::Error),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A checkpoint cannot be converted.
    #[error("cannot convert {}: {reason}", path.display())]
    Convert {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl HubError {
    /// For `map_err` of file operations.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// True where the checkpoint's content, or what names it, is at fault; not the network or this machine.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::InvalidSource { .. }
            | Self::DemoNotBuilt
            | Self::InsideTheBinary { .. }
            | Self::NotADirectory { .. }
            | Self::MissingFile { .. }
            | Self::InvalidIndex { .. }
            | Self::MissingInRepository { .. }
            | Self::Convert { .. } => true,
            Self::Refused { .. }
            | Self::NotFound { .. }
            | Self::NotCached { .. }
            | Self::Unreachable { .. }
            | Self::UnexpectedStatus { .. }
            | Self::BadAnswer { .. }
            | Self::CutShort { .. }
            | Self::WrongChecksum { .. }
            | Self::Client(_)
            | Self::Io { .. } => false,
        }
    }

    /// The innermost cause, for logs that show one line.
    pub(super) fn cause(&self) -> Option<String> {
        let mut cause = self.source()?;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Some(cause.to_string())
    }

    /// True where another attempt may succeed: connections and the far side's own troubles.
    pub(super) fn is_transient(&self) -> bool {
        if let Self::UnexpectedStatus { status, .. } = self {
            return matches!(status, 408 | 429 | 500..=599);
        }
        matches!(self, Self::Unreachable { .. } | Self::CutShort { .. })
    }
}
