//! The table of rows: JSON lines, or CSV. Each row is written by one system call and nothing is held back, so whatever
//! ends the process, all rows but the last are whole. A resumed run begins with leaving out what is not.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::columns::Columns;
use super::outputs::OutputError;
use super::row::{self, FileFacts, Item, Outcome, Row};
use super::{Existing, Identity, reader};

/// The first columns of each CSV table, which say which file a row is about.
const OF_FILE: [&str; 4] = ["path", "size", "modified", "sha256"];
const ERROR: &str = "error";

/// The table of a run.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    /// `None` for standard output.
    file: Option<File>,
    /// `None` for JSON lines.
    csv: Option<Columns>,
    /// True until the first row: what the file holds then is replaced.
    is_new: bool,
}

/// The pictures with rows of earlier runs.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Those whose rows are kept.
    pub(super) done: HashSet<String>,
    /// Those whose rows are replaced: they failed or have changed.
    pub(super) dropped: HashSet<String>,
}

/// How a table is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    pub(super) existing: Existing,
    pub(super) identity: Identity,
    /// True if lines of a list may have questions of their own.
    pub(super) has_lists: bool,
}

/// A row of an earlier run.
struct Kept {
    path: String,
    /// True if it is an error.
    failed: bool,
    facts: FileFacts,
    bytes: Vec<u8>,
}

impl Table {
    /// Opens a table. Returns also the pictures that have rows.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, is used by another run, is no table of this command, or cannot be
    /// written.
    pub(super) fn open(
        path: &Path,
        columns: Columns,
        opening: Opening,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<(Self, Earlier), OutputError> {
        if path == Path::new("-") {
            let table = Self { path: path.into(), file: None, csv: None, is_new: false };
            return Ok((table, Earlier::default()));
        }
        let is_csv = is_csv(path);
        let mut file = locked(path)?;
        let (mut earlier, mut is_new) = (Earlier::default(), true);
        if file.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            match opening.existing {
                Existing::Refuse => return Err(OutputError::Exists(path.into())),
                Existing::Overwrite => {}
                Existing::Resume => {
                    earlier = compact(path, (&columns, is_csv), opening, is_wanted)?;
                    (file, is_new) = (locked(path)?, false);
                }
            }
        }
        let csv = is_csv.then_some(columns);
        Ok((Self { path: path.into(), file: Some(file), csv, is_new }, earlier))
    }

    /// Reads the pictures that have rows, and changes nothing. `None` for standard output.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, is no table of this command, or cannot be read.
    pub(super) fn look(
        path: &Path,
        columns: &Columns,
        opening: Opening,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Earlier>, OutputError> {
        if path == Path::new("-") {
            return Ok(None);
        }
        match (fs::metadata(path), opening.existing) {
            (Err(error), _) if error.kind() != io::ErrorKind::NotFound || has_no_folder(path) => {
                Err(OutputError::of("write", path, error))
            }
            (Ok(metadata), Existing::Refuse) if metadata.len() > 0 => {
                Err(OutputError::Exists(path.into()))
            }
            (Ok(metadata), Existing::Resume) if metadata.len() > 0 => {
                let table = (columns, is_csv(path));
                kept_rows(path, table, opening, is_wanted, &mut |_| Ok(())).map(Some)
            }
            (Ok(_) | Err(_), _) => Ok(Some(Earlier::default())),
        }
    }

    /// Waits until the rows are on the disk.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn sync(&self) -> Result<(), OutputError> {
        let synced = self.file.as_ref().map_or(Ok(()), synced);
        synced.map_err(|error| OutputError::of("write", &self.path, error))
    }

    /// True unless the rows go to standard output.
    pub(super) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If it cannot be written. The table then ends with the row before it.
    pub(super) fn push(&mut self, item: &Item, outcome: &Outcome) -> Result<(), OutputError> {
        let mut row = match &self.csv {
            None => json_line(&Row::new(item, outcome.as_ref())),
            Some(columns) => csv_line(&cells(columns, item, outcome)),
        };
        let written = match &mut self.file {
            None => {
                let mut output = io::stdout().lock();
                match output.write_all(&row).and_then(|()| output.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Err(OutputError::ReaderGone);
                    }
                    written => written,
                }
            }
            Some(file) if self.is_new => {
                // Only now it is certain that the run works.
                let header = header(self.csv.as_ref());
                row.splice(0..0, header);
                self.is_new = false;
                let emptied = if file.metadata().is_ok_and(|it| it.len() > 0) {
                    file.set_len(0)
                } else {
                    Ok(())
                };
                emptied.and_then(|()| append(file, &row))
            }
            Some(file) => append(file, &row),
        };
        written.map_err(|error| OutputError::of("write", &self.path, error))
    }
}

impl Kept {
    /// True if the file has not changed since the row was written. Of URLs and files that are gone nothing is known.
    fn is_current(&self, identity: Identity) -> bool {
        let Some(now) = reader::facts_of(Path::new(&self.path), identity) else { return true };
        match identity {
            Identity::SizeAndTime => {
                (now.size, &now.modified) == (self.facts.size, &self.facts.modified)
            }
            Identity::Sha256 => now.sha256 == self.facts.sha256,
        }
    }
}

/// Appends bytes, all or none.
fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(bytes).inspect_err(|_| {
        // Of a full disk nothing more can be expected; the next run leaves out a torn row as well.
        let _ = file.set_len(before);
    })
}

/// Opens a file to append to it, and locks it against other runs.
fn locked(path: &Path) -> Result<File, OutputError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|error| OutputError::of("write", path, error))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(OutputError::Busy(path.into())),
        // A file system without locks is no reason not to write.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Rewrites a table with the whole rows without an error that are still valid.
fn compact(
    path: &Path,
    table: (&Columns, bool),
    opening: Opening,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Earlier, OutputError> {
    let path = &fs::canonicalize(path).map_err(|error| OutputError::of("read", path, error))?;
    let new = beside(path);
    let write = |error: io::Error| OutputError::of("write", path, error);
    let kept = copy_kept((path, &new), table, opening, is_wanted).and_then(|earlier| {
        let old = fs::metadata(path).map_err(write)?;
        fs::set_permissions(&new, old.permissions()).map_err(write)?;
        fs::rename(&new, path).map_err(write)?;
        Ok(earlier)
    });
    kept.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// Copies the rows to keep from one file to another.
fn copy_kept(
    (path, new): (&Path, &Path),
    (columns, is_csv): (&Columns, bool),
    opening: Opening,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Earlier, OutputError> {
    let write = |error: io::Error| OutputError::of("write", path, error);
    let mut output = BufWriter::new(create_beside(new).map_err(write)?);
    output.write_all(&header(is_csv.then_some(columns))).map_err(write)?;
    let mut keep = |row: &[u8]| output.write_all(row).map_err(write);
    let earlier = kept_rows(path, (columns, is_csv), opening, is_wanted, &mut keep)?;
    // Before it is renamed: a crash of the machine could otherwise leave an empty table in place of all earlier rows.
    let file = output.into_inner().map_err(|error| write(error.into_error()))?;
    file.sync_all().map_err(write)?;
    Ok(earlier)
}

/// Passes the rows to keep to `keep`. Returns the pictures with rows.
fn kept_rows(
    path: &Path,
    (columns, is_csv): (&Columns, bool),
    opening: Opening,
    is_wanted: &dyn Fn(&str) -> bool,
    keep: &mut dyn FnMut(&[u8]) -> Result<(), OutputError>,
) -> Result<Earlier, OutputError> {
    let read = |error: io::Error| OutputError::of("read", path, error);
    let mut earlier = Earlier::default();
    let mut visit = |row: Kept| -> Result<(), OutputError> {
        let is_kept = !row.failed && is_wanted(&row.path) && row.is_current(opening.identity);
        if is_kept && !earlier.done.contains(&row.path) {
            keep(&row.bytes)?;
            earlier.done.insert(row.path);
        } else {
            earlier.dropped.insert(row.path);
        }
        Ok(())
    };
    let input = BufReader::new(File::open(path).map_err(read)?);
    if is_csv {
        each_csv_row(input, path, columns, &mut visit)?;
    } else {
        let fits = |row: &Map<String, Value>| columns.fits(row, opening.has_lists);
        each_json_row(input, path, &fits, &mut visit)?;
    }
    Ok(earlier)
}

/// Tables are CSV if the name says so, and JSON lines otherwise.
fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
}

/// True if the folder in which a file would be created does not exist.
fn has_no_folder(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.is_some_and(|folder| !folder.is_dir())
}

/// Waits until a file is on the disk. Devices and pipes have none.
pub(super) fn synced(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.sync_all() } else { Ok(()) }
}

/// Returns the path of a temporary file beside a file.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Creates the file [`beside`] another. Whatever has this name, of a run that was killed or put there by somebody else, is
/// removed first, and a link is never followed.
pub(super) fn create_beside(new: &Path) -> io::Result<File> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => OpenOptions::new().write(true).create_new(true).open(new),
    }
}

fn each_json_row(
    mut input: impl BufRead,
    path: &Path,
    fits: &dyn Fn(&Map<String, Value>) -> bool,
    visit: &mut dyn FnMut(Kept) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    loop {
        let mut bytes = Vec::new();
        let read = input.read_until(b'\n', &mut bytes);
        // A row that was torn has no line break.
        if read.map_err(|error| OutputError::of("read", path, error))? == 0
            || !bytes.ends_with(b"\n")
        {
            return Ok(());
        }
        let no_table = || OutputError::OtherColumns(path.into());
        let row: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|_| no_table())?;
        let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
        let failed = row.contains_key(ERROR);
        let name = text("path").filter(|_| failed || fits(&row)).ok_or_else(no_table)?;
        let size = row.get("size").and_then(Value::as_u64);
        let facts = FileFacts { size, modified: text("modified"), sha256: text("sha256") };
        visit(Kept { path: name, failed, facts, bytes })?;
    }
}

fn each_csv_row(
    input: impl BufRead,
    path: &Path,
    columns: &Columns,
    visit: &mut dyn FnMut(Kept) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    let ends_well =
        ends_with_line_break(path).map_err(|error| OutputError::of("read", path, error))?;
    let mut rows = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
    let expected = names(columns);
    let mut rows = rows.byte_records().peekable();
    match rows.next() {
        Some(Ok(first)) if first.iter().eq(expected.iter().map(String::as_bytes)) => {}
        _ => return Err(OutputError::OtherColumns(path.into())),
    }
    while let Some(Ok(row)) = rows.next() {
        let is_torn = row.len() != expected.len() || (rows.peek().is_none() && !ends_well);
        let cells: Vec<String> =
            row.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
        if is_torn {
            continue;
        }
        let failed = cells.last().is_some_and(|error| !error.is_empty());
        let given = |at: usize| Some(cells[at].clone()).filter(|cell| !cell.is_empty());
        let facts = FileFacts {
            size: given(1).and_then(|size| size.parse().ok()),
            modified: given(2),
            sha256: given(3),
        };
        visit(Kept { path: cells[0].clone(), failed, facts, bytes: csv_line(&cells) })?;
    }
    Ok(())
}

fn ends_with_line_break(path: &Path) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    let (mut file, mut last) = (File::open(path)?, [0]);
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}

fn header(columns: Option<&Columns>) -> Vec<u8> {
    columns.map(|columns| csv_line(&names(columns))).unwrap_or_default()
}

fn names(columns: &Columns) -> Vec<String> {
    let of_file = OF_FILE.iter().copied().map(str::to_owned);
    of_file.chain(columns.names().iter().cloned()).chain([ERROR.to_owned()]).collect()
}

fn cells(columns: &Columns, item: &Item, outcome: &Outcome) -> Vec<String> {
    let FileFacts { size, modified, sha256 } = &item.file;
    let size = size.map(|size| size.to_string()).unwrap_or_default();
    let of_file = [
        item.place.name(),
        size,
        modified.clone().unwrap_or_default(),
        sha256.clone().unwrap_or_default(),
    ];
    let (answer, error) = match outcome {
        Ok(answer) => (columns.cells(answer), String::new()),
        Err(problem) => (vec![String::new(); columns.names().len()], row::detail(problem)),
    };
    of_file.into_iter().chain(answer).chain([error]).collect()
}

fn json_line(row: &Row<'_>) -> Vec<u8> {
    let mut line = serde_json::to_vec(row).unwrap_or_default();
    line.push(b'\n');
    line
}

fn csv_line(cells: &[String]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory cannot fail, and one record always has as many cells as itself.
    let _ = writer.write_record(cells);
    writer.into_inner().unwrap_or_default()
}
