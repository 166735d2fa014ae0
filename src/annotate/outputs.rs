//! All outputs of a run: the table, files beside the pictures, and vectors. A row of the table is written last, so a
//! picture with a row has all its other outputs.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::columns::Columns;
use super::npy::Npy;
use super::pictures::Place;
use super::row::{Item, Outcome, problem};
use super::sidecar::Sidecars;
use super::table::{Earlier, Opening, Table};
use super::{Existing, Job};

/// An output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The file exists.
    #[error("{} exists; use --resume to continue it, or --overwrite to replace it", .0.display())]
    Exists(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// "read" or "write".
        action: &'static str,
        /// The table, the vectors, or the list of their paths.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A table to continue is not one of this command with these questions, texts or labels.
    #[error("{} has other columns or fields than this command writes; use another file, or --overwrite", .0.display())]
    OtherColumns(PathBuf),
    /// Whoever read the rows on standard output has closed it.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    /// Another run writes to the table.
    #[error("another run writes to {}", .0.display())]
    Busy(PathBuf),
    /// A file of vectors to continue was not written by this program.
    #[error("{} is no file of vectors that this command wrote; use another file, or --overwrite", .0.display())]
    NotNpy(PathBuf),
    /// An embedding has another length than those before it.
    #[error("{} holds vectors of {expected} values, but the model returns {found}; use another file, or --overwrite", path.display())]
    Width {
        /// The file of vectors.
        path: PathBuf,
        /// Number of values of a vector of the file.
        expected: usize,
        /// Number of values of the new vector.
        found: usize,
    },
}

impl OutputError {
    pub(super) fn of(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// The outputs of a run.
pub(super) struct Outputs {
    table: Option<Table>,
    npy: Option<Npy>,
    sidecars: Arc<Sidecars>,
    done: Done,
    least_match: Option<f64>,
}

/// What was done before.
#[derive(Debug, Clone)]
pub(super) struct Done {
    paths: Arc<HashSet<String>>,
    /// Pictures whose rows were dropped, so that the files beside them are ours as well.
    dropped: Arc<HashSet<String>>,
    /// True if the table or the vectors tell what is done; otherwise the files beside the pictures do.
    is_listed: bool,
    sidecars: Arc<Sidecars>,
    existing: Existing,
}

/// What became of a picture.
pub(super) struct Written {
    /// Why it failed.
    pub(super) problem: Option<Map<String, Value>>,
    /// Number of captions that were left out.
    pub(super) rejected: u64,
}

impl Outputs {
    /// Opens all outputs.
    ///
    /// # Errors
    /// If one exists and must not be replaced, or cannot be written.
    pub(super) fn open(job: &Job) -> Result<Self, OutputError> {
        let sidecars = Arc::new(Sidecars::new(job));
        let (mut npy, of_npy) = match &job.npy {
            None => (None, None),
            Some(path) => {
                let (npy, done) = Npy::open(path, job.existing)?;
                (Some(npy), Some(done))
            }
        };
        let is_wanted = |path: &str| is_complete(of_npy.as_ref(), &sidecars, path);
        let (mut table, mut earlier) = (None, None);
        if let Some(path) = &job.table {
            let columns = Columns::new(job.kind, &job.fields);
            let (opened, found) = Table::open(path, columns, opening(job), &is_wanted)?;
            earlier = opened.is_file().then_some(found);
            table = Some(opened);
        }
        if let (Some(npy), Some(earlier)) = (&mut npy, &earlier) {
            npy.retain(&|path| earlier.done.contains(path))?;
        }
        let done = Done::new(job, Arc::clone(&sidecars), earlier, of_npy);
        Ok(Self { table, npy, sidecars, done, least_match: job.least_match })
    }

    /// Returns what was done before.
    pub(super) fn done(&self) -> Done {
        self.done.clone()
    }

    /// Writes an answer. A file beside the picture that cannot be written is an error of this picture alone.
    ///
    /// # Errors
    /// If the table or the vectors cannot be written.
    pub(super) fn write(&mut self, item: &Item, outcome: Outcome) -> Result<Written, OutputError> {
        let mut rejected = 0;
        let mut outcome = outcome.map(|mut answer| {
            rejected = self.least_match.map_or(0, |least| leave_out(&mut answer, least));
            answer
        });
        if let (Ok(answer), Place::File(path)) = (&outcome, &item.place)
            && let Err(error) = self.sidecars.write(path, item, answer, self.done.replaces(item))
        {
            outcome = Err(problem("unwritable", error.to_string()));
        }
        if let (Ok(answer), Some(npy)) = (&outcome, &mut self.npy) {
            npy.push(&item.place.name(), answer)?;
        }
        if let Some(table) = &mut self.table {
            table.push(item, &outcome)?;
        }
        Ok(Written { problem: outcome.err(), rejected })
    }

    /// Waits until the table and the vectors are on the disk, at the end of a run.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn sync(&self) -> Result<(), OutputError> {
        if let Some(npy) = &self.npy {
            npy.sync()?;
        }
        self.table.as_ref().map_or(Ok(()), Table::sync)
    }
}

fn opening(job: &Job) -> Opening {
    let (existing, identity) = (job.existing, job.identity);
    Opening { existing, identity, has_lists: job.pictures.has_lists() }
}

/// True if the other outputs of a row exist. Otherwise it is written again.
fn is_complete(of_npy: Option<&HashSet<String>>, sidecars: &Sidecars, path: &str) -> bool {
    of_npy.is_none_or(|done| done.contains(path)) && sidecars.exist(Path::new(path))
}

/// Leaves out captions whose probability of a match is below `least`. Returns their number.
fn leave_out(answer: &mut Map<String, Value>, least: f64) -> u64 {
    let Some(Value::Array(captions)) = answer.get_mut("captions") else { return 0 };
    let before = captions.len();
    captions.retain(|caption| {
        caption.get("match").and_then(Value::as_f64).is_none_or(|it| it >= least)
    });
    (before - captions.len()) as u64
}

impl Done {
    /// `earlier` is `None` without a table on disk, `of_npy` without vectors.
    fn new(
        job: &Job,
        sidecars: Arc<Sidecars>,
        earlier: Option<Earlier>,
        of_npy: Option<HashSet<String>>,
    ) -> Self {
        let is_listed = earlier.is_some() || of_npy.is_some();
        let Earlier { done, dropped } = earlier.unwrap_or_else(|| Earlier {
            done: of_npy.unwrap_or_default(),
            dropped: HashSet::new(),
        });
        let (paths, dropped, existing) = (Arc::new(done), Arc::new(dropped), job.existing);
        Self { paths, dropped, is_listed, sidecars, existing }
    }

    /// Reads what earlier runs have done, and changes nothing: for a dry run.
    ///
    /// # Errors
    /// If a run could not start: an output exists and must not be replaced, or cannot be read.
    pub(super) fn look(job: &Job) -> Result<Self, OutputError> {
        let sidecars = Arc::new(Sidecars::new(job));
        let npy = job.npy.as_ref().map(|path| Npy::look(path, job.existing));
        let of_npy = npy.transpose()?;
        let is_wanted = |path: &str| is_complete(of_npy.as_ref(), &sidecars, path);
        let columns = || Columns::new(job.kind, &job.fields);
        let table = job.table.as_ref();
        let earlier = table
            .map(|path| Table::look(path, &columns(), opening(job), &is_wanted))
            .transpose()?;
        Ok(Self::new(job, Arc::clone(&sidecars), earlier.flatten(), of_npy))
    }

    /// True if files beside this picture may be replaced. Without `--overwrite`, only those of a row that was dropped.
    fn replaces(&self, item: &Item) -> bool {
        self.existing == Existing::Overwrite || self.dropped.contains(&item.place.name())
    }

    /// True if the picture was done by an earlier run.
    ///
    /// # Errors
    /// If a file beside the picture exists that must not be replaced.
    pub(super) fn check(&self, item: &Item) -> Result<bool, String> {
        if self.is_listed && self.paths.contains(&item.place.name()) {
            return Ok(true);
        }
        let Place::File(path) = &item.place else { return Ok(false) };
        match self.existing {
            Existing::Overwrite => Ok(false),
            Existing::Refuse => self.sidecars.existing(path).map_or(Ok(false), |found| {
                Err(format!(
                    "{} exists; use --resume to keep it, or --overwrite to replace it",
                    found.display()
                ))
            }),
            Existing::Resume if self.is_listed => Ok(false),
            Existing::Resume => self.sidecars.are_done(path).map_err(|path| {
                format!(
                    "{} is older than the picture; use --overwrite to replace it",
                    path.display()
                )
            }),
        }
    }
}
