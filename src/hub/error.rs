//! Errors of finding, downloading and converting weights. Operators read the messages when a server does not start, so
//! the messages say what to do next.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::DocumentError;

/// Advice if the hub cannot be reached.
const REACH: &str = "check the network. Behind a proxy set HTTPS_PROXY, for a mirror set HF_ENDPOINT, and if the files are in the \
                     cache already set HF_HUB_OFFLINE=1; a server can also load a local directory (--model DIR)";
/// Advice for working without the hub. `download` and `verify` cannot, so it names what can.
const ELSEWHERE: &str =
    "a server can also load a local directory with the checkpoint's files (--model DIR)";

/// Why a source is not valid, why a checkpoint is not complete, or why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// An argument of the form `[NAME=]SRC` is not a valid model source.
    #[error("\"{text}\" is not a model source: {reason}")]
    InvalidSource {
        /// The source as it was given.
        text: String,
        /// What is wrong with the source, and what is accepted.
        reason: String,
    },
    /// `demo` was requested, but the binary was built without the feature `demo`.
    #[error(
        "no demo models are built into this binary; name a model: a hub id such as Salesforce/blip-image-captioning-large, or a directory"
    )]
    DemoNotBuilt,
    /// A demo model has no files on disk: it is part of the binary.
    #[error("{name} is built into this binary; there is nothing to download")]
    EmbeddedModel {
        /// Name of the demo model.
        name: &'static str,
    },
    /// The path does not lead to a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A checkpoint directory lacks a required file.
    #[error("{} has no {missing}; {hint}", directory.display())]
    MissingFile {
        /// The directory that was searched.
        directory: PathBuf,
        /// Name of the file, or of the alternatives.
        missing: String,
        /// What the operator can do.
        hint: &'static str,
    },
    /// A small JSON file of the checkpoint cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A weight index lists no files, or names that are not plain file names.
    #[error("{}: {reason}", path.display())]
    InvalidIndex {
        /// Path of the index file.
        path: PathBuf,
        /// What is wrong with the index file.
        reason: String,
    },
    /// The repository lacks a file that serving needs.
    #[error(
        "{id} at revision {revision} has no {missing}; it is not a BLIP checkpoint in transformers' layout"
    )]
    MissingInRepository {
        /// The repository's id, `owner/name`, as requested.
        id: String,
        /// The requested branch, tag or commit.
        revision: String,
        /// Name of the file, or of the alternatives.
        missing: &'static str,
    },
    /// The hub answered 401 or 403.
    #[error("the hub refused access to {id} ({status}): it is private or gated, or does not exist; {}",
        if *token_sent { "the token in HF_TOKEN has no read access to it" } else { "set HF_TOKEN to a token with read access to it" })]
    Refused {
        /// The repository's id, `owner/name`, as requested.
        id: String,
        /// The HTTP status: 401 or 403.
        status: u16,
        /// Whether the request contained a token.
        token_sent: bool,
    },
    /// The hub answered 404: there is no such repository, revision or file.
    #[error(
        "{what} not found on the hub; check the spelling of the id (owner/name) and of the revision"
    )]
    NotFound {
        /// What is missing (the repository, the revision or the file), as a phrase that ends in "was".
        what: String,
    },
    /// The setting `hub.offline` is on, and the cache lacks files of the checkpoint.
    #[error("{id} at revision {revision} is not completely in the cache {}: {reason}; unset HF_HUB_OFFLINE, or run `blip-server download {id}` with network access", cache.display())]
    NotCached {
        /// The repository's id, `owner/name`, as requested.
        id: String,
        /// The requested branch, tag or commit.
        revision: String,
        /// The root of the cache that was searched.
        cache: PathBuf,
        /// What is missing from the cache.
        reason: String,
    },
    /// In every attempt, the connection could not be opened or was interrupted.
    #[error("cannot read {url}; {REACH}")]
    Unreachable {
        /// The URL or file that was requested.
        url: String,
        /// The error of the last attempt.
        #[source]
        source: reqwest::Error,
    },
    /// The hub answered with a status that is neither success nor covered by the variants above.
    #[error("{url} answered {status}; try again later; {ELSEWHERE}")]
    UnexpectedStatus {
        /// The URL that was requested, without its query.
        url: String,
        /// The HTTP status of the response.
        status: u16,
    },
    /// A response that the hub's protocol does not allow.
    #[error(
        "unexpected response from {url}: {reason}; check that HF_ENDPOINT is the Hugging Face hub or a mirror of it, and that no \
         proxy answers in its place; {ELSEWHERE}"
    )]
    UnexpectedResponse {
        /// The URL or file that was requested.
        url: String,
        /// What is wrong with the response.
        reason: String,
    },
    /// The connection ended before the whole file had arrived.
    #[error(
        "the download of {file} ended after {got} of {size} bytes; run the same command again to resume it"
    )]
    Interrupted {
        /// File name, repository id and commit.
        file: String,
        /// Number of bytes that are on disk now.
        got: u64,
        /// Size of the whole file in bytes.
        size: u64,
    },
    /// The checksum of the downloaded bytes differs from the checksum that the hub sent.
    #[error(
        "{file} is damaged: its {algorithm} is {actual}, but the hub announced {expected}; the downloaded file has been deleted; try again"
    )]
    WrongChecksum {
        /// File name, repository id and commit.
        file: String,
        /// Name of the checksum: `SHA-256`, or `git SHA-1` for small files.
        algorithm: &'static str,
        /// The checksum that the hub sent for the file.
        expected: String,
        /// The checksum of the received bytes.
        actual: String,
    },
    /// The HTTP client could not be created.
    #[error(
        "cannot create the HTTP client; install root certificates (the package ca-certificates); {ELSEWHERE}"
    )]
    Client(#[source] reqwest::Error),
    /// An operation on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, a verb such as "read".
        action: &'static str,
        /// The file or directory on which the operation failed.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A checkpoint cannot be converted.
    #[error("cannot convert {}: {reason}", path.display())]
    Convert {
        /// Path of the file at fault.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
}

impl HubError {
    /// Returns a function for `map_err` that converts the error of a file operation to `Io`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// True if the checkpoint's content or the given source is at fault, and not the network or this machine.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            Self::Document(error) => error.is_content(),
            Self::InvalidSource { .. }
            | Self::DemoNotBuilt
            | Self::EmbeddedModel { .. }
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
            | Self::UnexpectedResponse { .. }
            | Self::Interrupted { .. }
            | Self::WrongChecksum { .. }
            | Self::Client(_)
            | Self::Io { .. } => false,
        }
    }

    /// Returns the message of the innermost cause, for logs that show one line.
    pub(super) fn cause(&self) -> Option<String> {
        let mut cause = self.source()?;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Some(cause.to_string())
    }

    /// True if another attempt may succeed: the connection failed or was interrupted, or the status indicates a
    /// temporary error.
    pub(super) fn is_transient(&self) -> bool {
        if let Self::UnexpectedStatus { status, .. } = self {
            return matches!(status, 408 | 429 | 500..=599);
        }
        matches!(self, Self::Unreachable { .. } | Self::Interrupted { .. })
    }
}
