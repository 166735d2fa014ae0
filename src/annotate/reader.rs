//! Reads pictures ahead of the models, on a thread of its own: leaves out those that are done, and makes a line of each
//! other.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::outputs::Done;
use super::pictures::{Found, Missing, Pictures, Place};
use super::row::{FileFacts, Item, problem};
use super::{Identity, Job, Kind, Progress};

/// Number of lines that are read ahead. Each has up to four thirds of the size of its picture.
const AHEAD: usize = 4;

/// Every so many pictures, the count of those that were found is told.
const TOLD: u64 = 256;

/// What became of a picture before it is sent.
#[derive(Debug)]
pub(super) enum Read {
    Picture(Item, Bytes),
    Failed(Item, Map<String, Value>),
    /// It was done before.
    Skipped,
    /// All pictures have been read.
    End,
}

/// What is needed to make lines.
#[derive(Debug, Clone)]
pub(super) struct LineMaker {
    kind: Kind,
    fields: Map<String, Value>,
    identity: Identity,
    max_image_bytes: usize,
}

/// The pictures in the order in which they were found, and the maker of their lines.
pub(super) struct Reader {
    pub(super) pictures: mpsc::Receiver<Read>,
    pub(super) lines: LineMaker,
}

/// Decides about each picture that was found: one that is named twice is taken once, and what earlier runs have done is
/// left out. Runs and dry runs use it.
pub(super) struct Sieve {
    /// The fields of each picture, by its key.
    seen: HashMap<[u8; 16], [u8; 16]>,
    done: Done,
}

/// What to do with a picture that was found.
pub(super) enum Sorted {
    Take(Item),
    /// It was named before.
    Repeated,
    /// It was done by an earlier run.
    Skipped,
    Failed(Item, Map<String, Value>),
}

/// Starts reading.
pub(super) fn start(
    job: &Job,
    done: Done,
    progress: &Arc<dyn Progress>,
    stop: CancellationToken,
) -> Reader {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let lines = LineMaker {
        kind: job.kind,
        fields: job.fields.clone(),
        identity: job.identity,
        max_image_bytes: job.max_image_bytes,
    };
    let pictures = Arc::clone(&job.pictures);
    if pictures.can_be_read_twice() {
        let (pictures, progress, stop) =
            (Arc::clone(&pictures), Arc::clone(progress), stop.clone());
        tokio::task::spawn_blocking(move || count(&pictures, progress.as_ref(), &stop));
    }
    let maker = lines.clone();
    tokio::task::spawn_blocking(move || {
        let mut sieve = Sieve::new(done);
        pictures.each(&mut |found| {
            let read = match sieve.sort(found) {
                Sorted::Take(item) => maker.read(item),
                Sorted::Repeated => return !stop.is_cancelled(),
                Sorted::Skipped => Read::Skipped,
                Sorted::Failed(item, problem) => Read::Failed(item, problem),
            };
            !stop.is_cancelled() && sender.blocking_send(read).is_ok()
        });
        // The receiver may be gone.
        let _ = sender.blocking_send(Read::End);
    });
    Reader { pictures: receiver, lines }
}

/// Counts the pictures, for the progress bar.
fn count(pictures: &Pictures, progress: &dyn Progress, stop: &CancellationToken) {
    let mut count = 0;
    pictures.each(&mut |_| {
        count += 1;
        if count % TOLD == 0 {
            progress.found(count, false);
        }
        !stop.is_cancelled()
    });
    progress.found(count, true);
}

/// A short key of a text. Whole paths would take a hundred bytes for each picture.
pub(super) fn key(text: impl AsRef<[u8]>) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&Sha256::digest(text)[..16]);
    key
}

fn fields_of(found: &Found) -> String {
    Value::Object(found.fields.clone()).to_string()
}

impl Sieve {
    pub(super) fn new(done: Done) -> Self {
        Self { seen: HashMap::new(), done }
    }

    pub(super) fn sort(&mut self, found: Result<Found, Missing>) -> Sorted {
        let file = FileFacts::default();
        let found = match found {
            Ok(found) => found,
            Err(Missing { path, reason }) => {
                let item = Item { place: Place::File(path.into()), fields: Map::new(), file };
                return Sorted::Failed(item, problem("unreadable", reason));
            }
        };
        let fields = key(fields_of(&found));
        let before = self.seen.insert(found.place.key(), fields);
        let Found { place, fields: own } = found;
        let item = Item { place, fields: own, file };
        if before == Some(fields) {
            return Sorted::Repeated;
        }
        if before.is_some() {
            // Each picture has one row.
            let detail = "was named before with other fields; ask for everything in one line";
            return Sorted::Failed(item, problem("named_twice", detail));
        }
        if let Place::File(path) = &item.place
            && path.to_str().is_none()
        {
            let problem = problem("unreadable", "its name is not UTF-8; rename it");
            return Sorted::Failed(item, problem);
        }
        match self.done.check(&item) {
            Ok(true) => Sorted::Skipped,
            Ok(false) => Sorted::Take(item),
            Err(reason) => Sorted::Failed(item, problem("exists", reason)),
        }
    }
}

impl LineMaker {
    fn read(&self, mut item: Item) -> Read {
        match self.line(&mut item) {
            Ok(line) => Read::Picture(item, line),
            Err(reason) => Read::Failed(item, problem("unreadable", reason)),
        }
    }

    /// True if all lines have this field.
    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Reads the picture and makes its line, without `id`, which the exchange puts in front.
    ///
    /// # Errors
    /// Why the file cannot be read.
    pub(super) fn line(&self, item: &mut Item) -> Result<Bytes, String> {
        let (mut fields, own) = (self.fields.clone(), item.fields.clone());
        fields.extend(own);
        fields.insert("task".to_owned(), self.kind.task().into());
        let image = match &item.place {
            Place::Url(url) => {
                fields.insert("image".to_owned(), url.as_str().into());
                None
            }
            Place::File(path) => {
                let (bytes, file) = self.file(path).map_err(|error| error.to_string())?;
                item.file = file;
                Some(bytes)
            }
        };
        let mut line = Value::Object(fields).to_string();
        line.pop();
        if let Some(image) = image {
            line.reserve(image.len().div_ceil(3) * 4 + 16);
            line.push_str(",\"image\":\"");
            STANDARD.encode_string(&image, &mut line);
            line.push('"');
        }
        line.push_str("}\n");
        Ok(line.into())
    }

    fn file(&self, path: &Path) -> io::Result<(Vec<u8>, FileFacts)> {
        let (file, metadata) = open(path)?;
        let mut facts = facts(&metadata);
        let mut bytes = Vec::new();
        let read = file.take(self.max_image_bytes as u64 + 1).read_to_end(&mut bytes)?;
        if read > self.max_image_bytes {
            return Err(too_large(self.max_image_bytes));
        }
        if self.identity == Identity::Sha256 {
            facts.sha256 = Some(sha256(&bytes));
        }
        Ok((bytes, facts))
    }
}

/// Checks that a picture can be read, without reading it: for a dry run.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn check_file(path: &Path, max_image_bytes: usize) -> io::Result<()> {
    let (_, metadata) = open(path)?;
    if metadata.len() > max_image_bytes as u64 { Err(too_large(max_image_bytes)) } else { Ok(()) }
}

fn open(path: &Path) -> io::Result<(File, fs::Metadata)> {
    // Before it is opened: opening a named pipe waits for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

fn too_large(max: usize) -> io::Error {
    io::Error::other(format!("larger than {max} bytes (input.max_image_bytes)"))
}

fn facts(metadata: &fs::Metadata) -> FileFacts {
    let modified = metadata.modified().ok().and_then(text_of_time);
    FileFacts { size: Some(metadata.len()), modified, sha256: None }
}

/// Returns what identifies the content of a file now; `None` if it cannot be read.
pub(super) fn facts_of(path: &Path, identity: Identity) -> Option<FileFacts> {
    let mut facts = facts(&fs::metadata(path).ok()?);
    if identity == Identity::Sha256 {
        facts.sha256 = Some(sha256_of(path).ok()?);
    }
    Some(facts)
}

fn sha256(bytes: &[u8]) -> String {
    text_of_hash(&Sha256::digest(bytes))
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(text_of_hash(&hash.finalize())),
            read => hash.update(&piece[..read]),
        }
    }
}

fn text_of_hash(hash: &[u8]) -> String {
    hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn text_of_time(time: SystemTime) -> Option<String> {
    // File systems hold times that no calendar has.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let milliseconds = i128::try_from(since.as_millis()).ok()?;
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(milliseconds.checked_mul(1_000_000)?).ok()?;
    time.format(&time::format_description::well_known::Rfc3339).ok()
}
