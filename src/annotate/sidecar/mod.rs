//! Files beside the pictures: `photo.txt` and `photo.json` beside `photo.jpg`, as programs that train models read them. If
//! two pictures of a folder share a stem, they get `photo.jpg.txt` and `photo.png.txt`. XMP files always have the full name:
//! `photo.jpg.xmp`, as photo managers read them.

mod xmp;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::columns;
use super::pictures::is_picture;
use super::row::{Item, Row};
use super::table::{beside, create_beside};
use super::{Job, Kind};

/// A kind of files beside pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarFormat {
    /// The captions or answers, one a line.
    Txt,
    /// The row of the table.
    Json,
    /// The first caption or answer as description in an XMP file, whose other data is kept.
    Xmp,
}

impl SidecarFormat {
    fn extension(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Xmp => "xmp",
        }
    }
}

/// How often each stem occurs among the pictures of a folder.
type Stems = HashMap<OsString, usize>;

/// The files beside the pictures of a run.
#[derive(Debug)]
pub(super) struct Sidecars {
    formats: Vec<SidecarFormat>,
    kind: Kind,
    affixes: (String, String),
    /// Language of the texts in XMP files.
    language: Option<String>,
    /// How often each stem occurs in the folder that was looked at last.
    stems: Mutex<Option<(PathBuf, Arc<Stems>)>>,
}

impl Sidecars {
    pub(super) fn new(job: &Job) -> Self {
        let (formats, affixes) = (job.sidecars.clone(), job.affixes.clone());
        let language = job.language.clone();
        Self { formats, kind: job.kind, affixes, language, stems: Mutex::default() }
    }

    /// Returns a file beside this picture that exists.
    pub(super) fn existing(&self, picture: &Path) -> Option<PathBuf> {
        let mut paths =
            self.paths(picture).filter(|(format, path)| self.holds_answer(*format, path));
        paths.next().map(|(_, path)| path)
    }

    /// True if all files beside this picture have an answer.
    pub(super) fn exist(&self, picture: &Path) -> bool {
        self.paths(picture).all(|(format, path)| self.holds_answer(format, &path))
    }

    /// True if all files beside this picture have an answer.
    ///
    /// # Errors
    /// The path of one that is older than the picture, which may have changed.
    pub(super) fn are_done(&self, picture: &Path) -> Result<bool, PathBuf> {
        let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        if self.formats.is_empty() || !self.exist(picture) {
            return Ok(false);
        }
        let of_picture = time(picture);
        match self.paths(picture).find(|(_, path)| time(path) < of_picture) {
            None => Ok(true),
            Some((_, path)) => Err(path),
        }
    }

    /// True if a file beside a picture has an answer. An empty one has none: it can be left by a crash of the machine, see
    /// [`replace`]. An XMP file may have other data only; nothing is known of one that
    /// cannot be read, which writing reports.
    fn holds_answer(&self, format: SidecarFormat, path: &Path) -> bool {
        match format {
            SidecarFormat::Txt | SidecarFormat::Json => {
                fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
            }
            SidecarFormat::Xmp => {
                let file = fs::read_to_string(path).ok();
                let description =
                    file.and_then(|it| xmp::description(&it, self.language.as_deref()).ok());
                description.flatten().is_some()
            }
        }
    }

    /// Writes all files beside a picture, each by renaming a complete one. Without `replaces`, those with an answer stay.
    ///
    /// # Errors
    /// If one cannot be written.
    pub(super) fn write(
        &self,
        picture: &Path,
        item: &Item,
        answer: &Map<String, Value>,
        replaces: bool,
    ) -> io::Result<()> {
        for (format, path) in self.paths(picture) {
            if !replaces && self.holds_answer(format, &path) {
                continue;
            }
            let text = match format {
                SidecarFormat::Json => {
                    let row = serde_json::to_string_pretty(&Row::new(item, Ok(answer)))?;
                    format!("{row}\n")
                }
                SidecarFormat::Txt => {
                    let (before, after) = &self.affixes;
                    let texts = columns::texts(self.kind, answer);
                    if texts.is_empty() {
                        // All captions were left out.
                        continue;
                    }
                    texts.iter().fold(String::new(), |all, text| all + before + text + after + "\n")
                }
                SidecarFormat::Xmp => {
                    let texts = columns::texts(self.kind, answer);
                    let Some(text) = texts.first() else { continue };
                    self.xmp(&path, text).map_err(|error| {
                        io::Error::other(format!("cannot change {}: {error}", path.display()))
                    })?
                }
            };
            replace(&path, text.as_bytes()).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
            })?;
        }
        Ok(())
    }

    /// Returns an XMP file with this text as description.
    fn xmp(&self, path: &Path, text: &str) -> Result<String, Box<dyn std::error::Error>> {
        let language = self.language.as_deref();
        match fs::read_to_string(path) {
            // Left by a crash of the machine.
            Ok(file) if file.is_empty() => Ok(xmp::new(text, language)),
            Ok(file) => Ok(xmp::merged(&file, text, language)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(xmp::new(text, language)),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the files beside a picture.
    fn paths(&self, picture: &Path) -> impl Iterator<Item = (SidecarFormat, PathBuf)> {
        let formats = &self.formats;
        let is_own = |format: &SidecarFormat| picture.with_extension(format.extension()) == picture;
        let is_full = !formats.is_empty()
            && (!is_picture(picture) || formats.iter().any(is_own) || self.shares_stem(picture));
        self.formats.iter().map(move |&format| {
            let extension = format.extension();
            let path = if is_full || format == SidecarFormat::Xmp {
                let mut name = picture.as_os_str().to_owned();
                name.push(format!(".{extension}"));
                name.into()
            } else {
                picture.with_extension(extension)
            };
            (format, path)
        })
    }

    /// True if another picture in the same folder has the same stem.
    fn shares_stem(&self, picture: &Path) -> bool {
        let folder = picture.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        let mut last = self.stems.lock().unwrap_or_else(PoisonError::into_inner);
        let stems = match &*last {
            Some((known, stems)) if known == folder => Arc::clone(stems),
            _ => {
                let stems = Arc::new(stems_of(folder));
                *last = Some((folder.to_owned(), Arc::clone(&stems)));
                stems
            }
        };
        drop(last);
        picture.file_stem().and_then(|stem| stems.get(stem)).is_some_and(|&count| count > 1)
    }
}

/// Counts the pictures of a folder by their stems. The full names count too: `a.jpg.png` must not write to `a.jpg.txt`, which
/// belongs to `a.jpg` if there is an `a.png` as well.
fn stems_of(folder: &Path) -> Stems {
    let mut stems = Stems::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Some(stem) = path.file_stem().filter(|_| is_picture(&path)) {
            *stems.entry(stem.to_owned()).or_default() += 1;
            *stems.entry(entry.file_name()).or_default() += 1;
        }
    }
    stems
}

/// Replaces a file in one step. It keeps its permissions, and a link still leads to it.
///
/// It waits for the disk only if a file with content is replaced, because a crash of the machine could otherwise lose both
/// the old and the new content. A new file can be empty after a crash, and then counts as missing: to wait for each would
/// take 0.9 to 2.6 ms instead of 0.03 (300 files of 23 bytes, ext4 on a virtual disk, 2026-12-01), which is much of the time
/// of a picture on a GPU.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let new = beside(path);
    let write = || -> io::Result<()> {
        let mut file = create_beside(&new)?;
        file.write_all(bytes)?;
        if let Ok(old) = fs::metadata(path) {
            fs::set_permissions(&new, old.permissions())?;
            if old.len() > 0 {
                file.sync_all()?;
            }
        }
        fs::rename(&new, path)
    };
    let written = write();
    written.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_at_the_temporary_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [victim, text] = ["victim", "photo.txt"].map(|name| folder.path().join(name));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, beside(&text)).unwrap();
        replace(&text, b"a caption").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&text).unwrap(), "a caption");
        assert!(!fs::symlink_metadata(&text).unwrap().is_symlink());
    }
}
