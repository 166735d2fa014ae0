//! Finds pictures: files, folders, lists of paths and URLs, and JSON lines.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde_json::{Map, Value};
use walkdir::WalkDir;

use super::reader::key;

/// File name extensions of the formats that the server decodes.
const EXTENSIONS: [&str; 7] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "jfif"];

/// Where pictures are.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Files, folders, `-` for a list on standard input, and URLs.
    paths: Vec<String>,
    /// Files with lists of pictures.
    lists: Vec<PathBuf>,
    /// Only pictures whose path or name matches; all if empty.
    include: GlobSet,
    /// No pictures, and no folders, whose path or name matches.
    exclude: GlobSet,
}

/// A pattern for file names is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is no pattern for file names: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: globset::ErrorKind,
}

/// A list of pictures cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the list {}: {source}", path.display())]
pub struct ListError {
    path: PathBuf,
    source: io::Error,
}

/// Where one picture is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Url(String),
}

/// A picture that was found, with the fields that its own line in a list has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) fields: Map<String, Value>,
}

/// A part of the pictures that cannot be found.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) path: String,
    pub(super) reason: String,
}

impl Pictures {
    /// Creates a description of where pictures are.
    ///
    /// # Errors
    /// If a pattern is wrong.
    pub fn try_new(
        paths: Vec<String>,
        lists: Vec<PathBuf>,
        include: &[String],
        exclude: &[String],
    ) -> Result<Self, PatternError> {
        let (include, exclude) = (patterns(include)?, patterns(exclude)?);
        Ok(Self { paths, lists, include, exclude })
    }

    /// True if lines of a list may have fields of their own.
    #[must_use]
    pub fn has_lists(&self) -> bool {
        !self.lists.is_empty() || self.paths.iter().any(|path| path == "-")
    }

    /// Checks that the lists can be read, before anything is done for their pictures.
    ///
    /// # Errors
    /// Names the first list that cannot be read.
    pub fn check_lists(&self) -> Result<(), ListError> {
        let check = |list: &Path| match fs::metadata(list)? {
            metadata if metadata.is_dir() => Err(io::Error::other("it is a folder")),
            metadata if metadata.is_file() => File::open(list).map(drop),
            // Opening a pipe and closing it again would end its writer.
            _ => Ok(()),
        };
        let mut lists = self.lists.iter().filter(|list| list.as_path() != Path::new("-"));
        lists.try_for_each(|list| {
            check(list).map_err(|source| ListError { path: list.clone(), source })
        })
    }

    /// Says where no picture was found, and what was there instead. For a run without any picture.
    #[must_use]
    pub fn nothing_found(&self) -> String {
        let is_folder = |path: &&String| !is_url(path) && Path::new(path).is_dir();
        let mut there = LeftOut::default();
        for folder in self.paths.iter().filter(is_folder) {
            there.add(Path::new(folder));
        }
        let name = |path: &str| match path {
            "-" => "the list on standard input".to_owned(),
            path => path.to_owned(),
        };
        let lists = self.lists.iter().map(|list| name(&list.display().to_string()));
        let places: Vec<String> = self.paths.iter().map(|path| name(path)).chain(lists).collect();
        let text = format!("no pictures in {}", places.join(", "));
        if !self.paths.iter().any(|path| is_folder(&path)) {
            return text;
        }
        format!("{text} (looked for names ending in {}{there})", EXTENSIONS.join(", "))
    }

    /// True if the pictures can be counted before they are processed. What is read from standard input or from a pipe, such
    /// as `--list <(find ...)`, would be missing from the run.
    pub(super) fn can_be_read_twice(&self) -> bool {
        !self.paths.iter().any(|path| path == "-") && self.lists.iter().all(|list| list.is_file())
    }

    /// Calls `visit` for each picture in turn, until it returns false. Pictures of a folder come in the order of their
    /// names.
    pub(super) fn each(&self, visit: &mut dyn FnMut(Result<Found, Missing>) -> bool) -> bool {
        self.paths.iter().all(|path| match path.as_str() {
            "-" => each_line(&mut io::stdin().lock(), Path::new("-"), visit),
            url if is_url(url) => visit(Ok(Found::at(Place::Url(url.to_owned())))),
            path => self.each_below(Path::new(path), visit),
        }) && self.lists.iter().all(|list| match list.to_str() {
            Some("-") => each_line(&mut io::stdin().lock(), list, visit),
            _ => match File::open(list) {
                Ok(file) => each_line(&mut BufReader::new(file), list, visit),
                Err(error) => visit(Err(Missing::of(list, &error))),
            },
        })
    }

    /// Calls `visit` for a file, or for each picture in a folder.
    fn each_below(
        &self,
        path: &Path,
        visit: &mut dyn FnMut(Result<Found, Missing>) -> bool,
    ) -> bool {
        if !path.is_dir() {
            if let Some(reason) = unexpanded(path) {
                return visit(Err(Missing { path: path.display().to_string(), reason }));
            }
            // A file that was named is taken whatever its name is.
            return visit(Ok(Found::at(Place::File(path.to_owned()))));
        }
        let root = path;
        let matches = |set: &GlobSet, path: &Path| {
            let name = path.file_name().is_some_and(|name| set.is_match(name));
            let below = path.strip_prefix(root).is_ok_and(|below| set.is_match(below));
            name || below || set.is_match(path)
        };
        let walk = WalkDir::new(path).sort_by_file_name().into_iter();
        for entry in
            walk.filter_entry(|entry| entry.depth() == 0 || !matches(&self.exclude, entry.path()))
        {
            let goes_on = match entry {
                Ok(entry) if !is_picture(entry.path()) || is_no_file(entry.path()) => true,
                Ok(entry) if !self.include.is_empty() && !matches(&self.include, entry.path()) => {
                    true
                }
                Ok(entry) => visit(Ok(Found::at(Place::File(entry.into_path())))),
                Err(error) => {
                    let at = error.path().map_or(path, |path| path).display().to_string();
                    visit(Err(Missing { path: at, reason: error.to_string() }))
                }
            };
            if !goes_on {
                return false;
            }
        }
        true
    }
}

/// What a folder has that is not taken.
#[derive(Debug, Default)]
struct LeftOut {
    /// Pictures that the patterns leave out.
    pictures: usize,
    /// Files of other types.
    others: usize,
    /// Symbolic links to folders.
    links: usize,
}

impl LeftOut {
    fn add(&mut self, folder: &Path) {
        for entry in WalkDir::new(folder).into_iter().flatten() {
            let (path, is_link) = (entry.path(), entry.path_is_symlink());
            match () {
                () if is_link && entry.depth() > 0 && path.is_dir() => self.links += 1,
                () if is_no_file(path) => {}
                () if is_picture(path) => self.pictures += 1,
                () => self.others += 1,
            }
        }
    }
}

/// As the end of a sentence; empty if there is nothing to tell.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, one, many) in [
            (self.others, "other file was skipped", "other files were skipped"),
            (
                self.pictures,
                "picture is left out by --include or --exclude",
                "pictures are left out by --include or --exclude",
            ),
            (
                self.links,
                "symbolic link to a folder was not followed",
                "symbolic links to folders were not followed",
            ),
        ] {
            match number {
                0 => {}
                1 => write!(f, "; 1 {one}")?,
                number => write!(f, "; {number} {many}")?,
            }
        }
        Ok(())
    }
}

impl Found {
    fn at(place: Place) -> Self {
        Self { place, fields: Map::new() }
    }
}

impl Place {
    /// Returns a short key of the picture, whatever name leads to it.
    pub(super) fn key(&self) -> [u8; 16] {
        match self {
            Self::File(path) => {
                let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
                key(path.as_os_str().as_encoded_bytes())
            }
            Self::Url(url) => key(url),
        }
    }

    /// Returns the path or the URL as it is written to outputs.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Url(url) => url.clone(),
        }
    }
}

impl Missing {
    fn of(path: &Path, reason: &dyn std::error::Error) -> Self {
        Self { path: path.display().to_string(), reason: reason.to_string() }
    }
}

/// Calls `visit` for each line of a list: a path, a URL, or a JSON object with `path` or `url`, whose other fields belong to
/// the request for this picture.
fn each_line(
    lines: &mut dyn BufRead,
    list: &Path,
    visit: &mut dyn FnMut(Result<Found, Missing>) -> bool,
) -> bool {
    let (mut line, mut is_first) = (Vec::new(), true);
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return visit(Err(Missing::of(list, &error))),
        }
        while line.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
            line.pop();
        }
        if std::mem::take(&mut is_first) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            continue;
        }
        if !visit(of_line(&line)) {
            return false;
        }
    }
}

fn of_line(line: &[u8]) -> Result<Found, Missing> {
    if line.starts_with(b"{") {
        return of_object(line).map_err(|reason| {
            let path = String::from_utf8_lossy(line).chars().take(80).collect();
            Missing { path, reason }
        });
    }
    let url = std::str::from_utf8(line).ok().filter(|line| is_url(line));
    Ok(Found::at(url.map_or_else(|| Place::File(path_of(line)), |url| Place::Url(url.to_owned()))))
}

fn of_object(line: &[u8]) -> Result<Found, String> {
    let mut fields: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| format!("no JSON object: {error}"))?;
    let mut text = |name: &str| match fields.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("\"{name}\" must be a text")),
    };
    let place = match (text("path")?, text("url")?) {
        (Some(path), None) if is_url(&path) => Place::Url(path),
        (Some(path), None) => Place::File(path.into()),
        (None, Some(url)) => Place::Url(url),
        _ => return Err("needs either \"path\" or \"url\"".to_owned()),
    };
    // What this command sets itself.
    for name in ["id", "task", "image"] {
        fields.remove(name);
    }
    Ok(Found { place, fields })
}

/// Paths are bytes on Unix, not text.
#[cfg(unix)]
fn path_of(line: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(line).into()
}

#[cfg(not(unix))]
fn path_of(line: &[u8]) -> PathBuf {
    String::from_utf8_lossy(line).into_owned().into()
}

fn patterns(patterns: &[String]) -> Result<GlobSet, PatternError> {
    let mut set = GlobSetBuilder::new();
    let wrong = |pattern: &String, error: &globset::Error| PatternError {
        pattern: pattern.clone(),
        reason: error.kind().clone(),
    };
    for pattern in patterns {
        set.add(Glob::new(pattern.trim_end_matches('/')).map_err(|error| wrong(pattern, &error))?);
    }
    set.build().map_err(|error| wrong(&patterns.join(" "), &error))
}

/// Returns what to do about a path that does not exist and looks like a pattern, which only shells expand.
fn unexpanded(path: &Path) -> Option<String> {
    let is_pattern = |text: &Path| text.to_string_lossy().contains(['*', '?', '[']);
    if !is_pattern(path) || fs::symlink_metadata(path).is_ok() {
        return None;
    }
    let folder = path.ancestors().find(|folder| !is_pattern(folder))?;
    let pattern = path.strip_prefix(folder).ok()?.display();
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    Some(format!(
        "no such file; to use a pattern, name the folder and the pattern ({} --include '{pattern}'), or leave out the \
         quotes so that the shell expands it",
        folder.display()
    ))
}

fn is_url(text: &str) -> bool {
    let begins = |scheme: &str| {
        text.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    };
    begins("http://") || begins("https://")
}

/// True for folders, and for what could block its reader, such as a named pipe. A link that leads nowhere counts as a file,
/// whose reader then says so.
fn is_no_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// True if the name has an extension of a picture.
pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|it| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(it)))
}
