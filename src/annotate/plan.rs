//! A dry run: which pictures a job would process, and which would fail before they are sent. It changes no file.

use super::outputs::{Done, OutputError};
use super::pictures::Place;
use super::reader::{Sieve, Sorted, check_file};
use super::row::{self, problem};
use super::{Job, Summary};

/// What a run would do with a picture.
#[derive(Debug, PartialEq, Eq)]
pub enum Planned {
    /// Send the picture with this name.
    Picture(String),
    /// Report this error about a picture.
    Failed(String),
}

/// Calls `visit` for each picture that a run would process or that would fail, in turn. In the summary, `done` is the number
/// of pictures that would be processed.
///
/// # Errors
/// If a run could not open its outputs.
pub fn plan(job: &Job, visit: &mut dyn FnMut(Planned)) -> Result<Summary, OutputError> {
    let mut sieve = Sieve::new(Done::look(job)?);
    let mut summary = Summary::default();
    job.pictures.each(&mut |found| {
        let (item, problem) = match sieve.sort(found) {
            Sorted::Repeated => return true,
            Sorted::Skipped => {
                summary.skipped += 1;
                return true;
            }
            Sorted::Failed(item, problem) => (item, Some(problem)),
            Sorted::Take(item) => {
                let checked = match &item.place {
                    Place::File(path) => check_file(path, job.max_image_bytes),
                    Place::Url(_) => Ok(()),
                };
                (item, checked.err().map(|error| problem("unreadable", error.to_string())))
            }
        };
        let name = item.place.name();
        visit(match problem {
            None => {
                summary.done += 1;
                Planned::Picture(name)
            }
            Some(problem) => {
                summary.failed += 1;
                Planned::Failed(format!("{name}: {}", row::detail(&problem)))
            }
        });
        true
    });
    Ok(summary)
}
