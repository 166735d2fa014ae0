//! Runs one task over many pictures: folders are walked, pictures are sent as lines of `/bulk`, and answers become rows of
//! a table and files beside the pictures. The commands `caption`, `ask`, `match`, `embed` and `classify` use it.
//!
//! ```text
//! pictures -> reader (a thread: size, time, base64) -> exchange (lines out, answers in) -> outputs (table, sidecars, npy)
//! ```
//!
//! - `pictures`: finds the pictures. `reader`: reads them ahead, and leaves out those that are done. `plan`: a dry run.
//! - `service`: the interface of `/bulk`, in this process or on a server. `remote` is the latter.
//! - `exchange`: sends lines, receives answers, and sends again what a broken connection left without an answer.
//! - `outputs`: the table (`table`, `columns`), files beside the pictures (`sidecar`), vectors (`npy`).
//!
//! Nothing is kept for a picture that is done, except its row in the table on disk.

mod columns;
mod exchange;
mod npy;
mod outputs;
mod pictures;
mod plan;
mod reader;
mod remote;
mod row;
mod service;
mod sidecar;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use self::exchange::Exchange;
pub use self::outputs::OutputError;
use self::outputs::Outputs;
pub use self::pictures::{ListError, PatternError, Pictures};
pub use self::plan::{Planned, plan};
pub use self::remote::Remote;
pub use self::service::{BulkService, Lines, SendError};
pub use self::sidecar::SidecarFormat;

/// What to do with a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Describe it.
    Caption,
    /// Answer questions about it.
    Ask,
    /// Compare it with texts.
    Match,
    /// Embed it.
    Embed,
    /// Choose among labels.
    Classify,
}

impl Kind {
    /// Returns the name of the task in a line of `/bulk`.
    fn task(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Ask => "vqa",
            Self::Match => "similarity",
            Self::Embed => "embeddings",
            Self::Classify => "classify",
        }
    }
}

/// What to do if there are results already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// End with an error (table), or skip the picture with an error (files beside it).
    Refuse,
    /// Keep what is done, and do the rest.
    Resume,
    /// Replace it.
    Overwrite,
}

/// How to tell whether a picture has changed since its row was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// By size and time of the last change.
    SizeAndTime,
    /// By its SHA-256.
    Sha256,
}

/// Everything that a run needs to know.
#[derive(Debug)]
pub struct Job {
    /// What to do with each picture.
    pub kind: Kind,
    /// Where the pictures are.
    pub pictures: Arc<Pictures>,
    /// Fields of the request that all pictures share.
    pub fields: Map<String, Value>,
    /// Table of rows: CSV if the name ends in `.csv`, otherwise JSON lines. `None` for no table, `-` for standard output.
    pub table: Option<PathBuf>,
    /// Files beside the pictures.
    pub sidecars: Vec<SidecarFormat>,
    /// File of vectors; the paths are written beside it.
    pub npy: Option<PathBuf>,
    /// What to do with results of earlier runs.
    pub existing: Existing,
    /// How a changed picture is recognised.
    pub identity: Identity,
    /// Text before and after each caption or answer in files beside the pictures.
    pub affixes: (String, String),
    /// Language of descriptions in XMP files, such as `en`; `None` for the default entry alone.
    pub language: Option<String>,
    /// Captions with a smaller probability of a match are left out.
    pub least_match: Option<f64>,
    /// Maximum size of a picture in bytes.
    pub max_image_bytes: usize,
}

impl Job {
    /// True if a later run can tell what this one has done: it writes files, not to standard output alone.
    #[must_use]
    pub fn can_be_resumed(&self) -> bool {
        let has_table = self.table.as_ref().is_some_and(|path| path != Path::new("-"));
        has_table || !self.sidecars.is_empty() || self.npy.is_some()
    }
}

/// What a run has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Number of pictures with an answer.
    pub done: u64,
    /// Number of pictures with an error.
    pub failed: u64,
    /// Number of pictures that were done before.
    pub skipped: u64,
    /// Number of captions that were left out because they do not match.
    pub rejected: u64,
    /// True if the run was interrupted.
    pub interrupted: bool,
}

impl Summary {
    /// True if there was no picture to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done + self.failed + self.skipped == 0 && !self.interrupted
    }
}

/// Why a run could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The service cannot be reached, or refuses every line.
    #[error(transparent)]
    Service(#[from] SendError),
    /// The thread that reads pictures has ended early. The log has the reason.
    #[error("the pictures cannot be read to the end; what was answered is written")]
    Reader,
    /// A parameter is wrong, so every picture would fail. The problem is that of the first.
    #[error("{}", row::detail(.0))]
    Parameters(Map<String, Value>),
}

/// Receives what happens during a run, to show it.
pub trait Progress: Send + Sync {
    /// `pictures` pictures have been found so far; it is the final number if `is_all`.
    fn found(&self, pictures: u64, is_all: bool);
    /// A picture is finished.
    fn advanced(&self, summary: &Summary);
    /// Something a person should know.
    fn warn(&self, message: &str);
}

/// A job whose outputs are open.
pub struct Run {
    job: Job,
    outputs: Outputs,
}

impl Run {
    /// Opens the outputs of a job, before models are loaded for it.
    ///
    /// # Errors
    /// If one exists and must not be replaced, or cannot be written.
    pub fn open(job: Job) -> Result<Self, OutputError> {
        let outputs = Outputs::open(&job)?;
        Ok(Self { job, outputs })
    }

    /// Runs all pictures of the job through a service, until `stop` is cancelled.
    ///
    /// # Errors
    /// If an output cannot be written or the service fails for good. What was done until then is on disk.
    pub async fn through(
        mut self,
        service: &dyn BulkService,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Summary, RunError> {
        let done = self.outputs.done();
        let reader = reader::start(&self.job, done, &progress, stop.clone());
        let exchange = Exchange::new(service, progress.as_ref(), stop);
        let ran = exchange.run(reader, &mut self.outputs).await;
        // After an error as well, because what was answered until then counts.
        let synced = self.outputs.sync();
        let summary = ran?;
        synced?;
        Ok(summary)
    }
}
