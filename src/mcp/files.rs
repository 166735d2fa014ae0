//! Pictures in the folders that the user allows. A path is resolved within its folder by the operating system (`cap-std`), so
//! neither `..` nor a symbolic link leads out of it, even if files change at the same time.

use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt as _};
use rustix::fs::OFlags;

/// Folders whose files may be read.
#[derive(Debug)]
pub struct AllowedFolders {
    folders: Vec<Folder>,
    max_image_bytes: usize,
}

#[derive(Debug)]
struct Folder {
    /// Absolute path, without symbolic links.
    root: PathBuf,
    /// Absolute path as the user gave it.
    given: PathBuf,
    directory: Dir,
}

/// A folder that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the folder {}", folder.display())]
pub struct FolderError {
    folder: PathBuf,
    #[source]
    source: io::Error,
}

impl AllowedFolders {
    /// Opens folders. Files larger than `max_image_bytes` are not read.
    ///
    /// # Errors
    /// If a path is no folder that can be opened.
    pub fn try_open(folders: &[PathBuf], max_image_bytes: usize) -> Result<Self, FolderError> {
        let open = |path: &PathBuf| {
            let root = path.canonicalize()?;
            let given = std::path::absolute(path)?;
            let directory = Dir::open_ambient_dir(&root, ambient_authority())?;
            Ok(Folder { root, given, directory })
        };
        let open = |path: &PathBuf| {
            open(path).map_err(|source| FolderError { folder: path.clone(), source })
        };
        let folders = folders.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { folders, max_image_bytes })
    }

    /// Returns the folders, for messages.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.folders.iter().map(|it| it.root.display().to_string()).collect();
        names.join(", ")
    }

    /// Reads the file at an absolute path, or at a path relative to one of the folders. The first folder that has the file
    /// counts.
    ///
    /// # Errors
    /// A text for the language model.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let mut found: Option<io::Error> = None;
        for folder in &self.folders {
            let Some(inside) = folder.inside(Path::new(path)) else { continue };
            match self.read_in(folder, inside) {
                Ok(bytes) => return Ok(bytes),
                // What one folder says of an existing file is worth more than that another one has no such file.
                Err(error) if found.as_ref().is_none_or(is_missing) => {
                    found = Some(error);
                }
                Err(_) => {}
            }
        }
        let names = self.names();
        Err(match found {
            None => format!("{path}: outside of {names}, the only folders whose files may be read"),
            Some(error) if is_missing(&error) => format!("{path}: no such file in {names}"),
            Some(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                format!("{path}: not readable, or outside of {names}")
            }
            Some(error) => format!("{path}: {error}"),
        })
    }

    fn read_in(&self, folder: &Folder, inside: &Path) -> io::Result<Vec<u8>> {
        let mut options = OpenOptions::new();
        // Opening a named pipe would otherwise wait for its writer.
        options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = folder.directory.open_with(inside, &options)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is no regular file"));
        }
        let max = self.max_image_bytes;
        let mut bytes = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            let text = format!("larger than {max} bytes (input.max_image_bytes)");
            return Err(io::Error::other(text));
        }
        Ok(bytes)
    }
}

impl Folder {
    /// Returns the part of a path behind this folder; `None` if the path is absolute and not below the folder.
    fn inside<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        match path.components().next() {
            Some(Component::RootDir | Component::Prefix(_)) => {
                let prefixes = [&self.root, &self.given];
                prefixes.into_iter().find_map(|prefix| path.strip_prefix(prefix).ok())
            }
            Some(Component::CurDir | Component::ParentDir | Component::Normal(_)) | None => {
                Some(path)
            }
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_read_below_the_allowed_folders_and_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        fs::create_dir_all(home.join("photos/2024")).unwrap();
        fs::write(home.join("photos/2024/a.jpg"), "inside").unwrap();
        fs::write(home.join("secret"), "outside").unwrap();
        symlink(home.join("secret"), home.join("photos/link.jpg")).unwrap();
        symlink("../secret", home.join("photos/relative.jpg")).unwrap();
        symlink("2024/a.jpg", home.join("photos/good.jpg")).unwrap();
        symlink(&home, home.join("photos/up")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, home.join("photos/pipe"), 0o600.into()).unwrap();
        fs::write(home.join("photos/large"), [0; 101]).unwrap();
        let allowed = AllowedFolders::try_open(&[home.join("photos")], 100).unwrap();
        let absolute = |name: &str| home.join(name).display().to_string();
        for path in
            ["2024/a.jpg", "./2024/../2024/a.jpg", "good.jpg", &absolute("photos/2024/a.jpg")]
        {
            assert_eq!(allowed.read(path).as_deref(), Ok(&b"inside"[..]), "{path}");
        }
        for (path, words) in [
            ("../secret", "outside of"),
            ("link.jpg", "outside of"),
            ("relative.jpg", "outside of"),
            ("up/secret", "outside of"),
            (&absolute("secret"), "outside of"),
            (&absolute("photos/../secret"), "outside of"),
            ("/etc/hostname", "outside of"),
            ("none.jpg", "no such file"),
            ("2024", "is no regular file"),
            ("pipe", "is no regular file"),
            ("large", "larger than 100 bytes"),
            ("", "no such file"),
        ] {
            let error = allowed.read(path).unwrap_err();
            assert!(error.contains(words), "{path}: {error}");
        }
        // Of several folders, the first that has the file counts, also if another one is a link.
        fs::create_dir(home.join("more")).unwrap();
        fs::write(home.join("more/2024"), "a file").unwrap();
        fs::write(home.join("more/b.jpg"), "second").unwrap();
        symlink(home.join("more"), home.join("linked")).unwrap();
        let both =
            AllowedFolders::try_open(&[home.join("photos"), home.join("linked")], 100).unwrap();
        for path in ["b.jpg", &absolute("more/b.jpg"), &absolute("linked/b.jpg")] {
            assert_eq!(both.read(path).as_deref(), Ok(&b"second"[..]), "{path}");
        }
        assert_eq!(both.read("2024").as_deref(), Ok(&b"a file"[..]));
        let missing = AllowedFolders::try_open(&[home.join("none")], 100).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
