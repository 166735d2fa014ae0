//! Vectors in a file of `NumPy` (format 1.0, little-endian f32), and their paths, one a line, in a file beside it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Existing;
use super::outputs::OutputError;
use super::table::{beside, create_beside, synced};

/// Size of the header, which has room for any number of rows.
const HEADER: usize = 128;

/// The vectors of a run.
#[derive(Debug)]
pub(super) struct Npy {
    path: PathBuf,
    vectors: File,
    paths: File,
    rows: u64,
    /// Number of values of a vector; `None` before the first.
    width: Option<usize>,
}

impl Npy {
    /// Opens the file and its list of paths. Returns also the paths of the vectors that are kept.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, is not of this kind, or cannot be written.
    pub(super) fn open(
        path: &Path,
        existing: Existing,
    ) -> Result<(Self, HashSet<String>), OutputError> {
        let list = list_of(path);
        let error = |error: io::Error| OutputError::of("write", path, error);
        let exists = fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        let mut names = Vec::new();
        let mut width = None;
        match existing {
            Existing::Refuse if exists => return Err(OutputError::Exists(path.into())),
            Existing::Resume if exists => (names, width) = consistent(path, &list)?,
            // What the files hold is replaced by the first vector, when it is certain that the run works.
            Existing::Refuse | Existing::Resume | Existing::Overwrite => {}
        }
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        let mut npy = Self {
            path: path.into(),
            vectors: open(path).map_err(error)?,
            paths: open(&list).map_err(|error| OutputError::of("write", &list, error))?,
            rows: names.len() as u64,
            width,
        };
        if npy.rows > 0 {
            npy.cut().map_err(error)?;
        }
        Ok((npy, names.into_iter().collect()))
    }

    /// Reads the paths of the vectors that [`open`](Self::open) would keep, and changes nothing.
    ///
    /// # Errors
    /// If the file exists and must not be replaced, is not of this kind, or cannot be read.
    pub(super) fn look(path: &Path, existing: Existing) -> Result<HashSet<String>, OutputError> {
        let exists = fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        match existing {
            Existing::Refuse if exists => Err(OutputError::Exists(path.into())),
            Existing::Resume if exists => {
                Ok(consistent(path, &list_of(path))?.0.into_iter().collect())
            }
            Existing::Refuse | Existing::Resume | Existing::Overwrite => Ok(HashSet::new()),
        }
    }

    /// Waits until both files are on the disk: the vectors first, so that a path always has its vector.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn sync(&self) -> Result<(), OutputError> {
        synced(&self.vectors)
            .and_then(|()| synced(&self.paths))
            .map_err(|error| OutputError::of("write", &self.path, error))
    }

    /// Keeps only vectors whose path is wanted.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub(super) fn retain(&mut self, is_wanted: &dyn Fn(&str) -> bool) -> Result<(), OutputError> {
        let Some(width) = self.width else { return Ok(()) };
        let list = list_of(&self.path);
        let names =
            fs::read_to_string(&list).map_err(|error| OutputError::of("read", &list, error))?;
        if names.lines().all(|name| is_wanted(&unescaped(name))) {
            return Ok(());
        }
        let (new, new_list) = (beside(&self.path), beside(&list));
        let copied = || -> io::Result<u64> {
            let mut rows = 0;
            let (mut vectors, mut paths) = (create_beside(&new)?, create_beside(&new_list)?);
            vectors.write_all(&header(0, width))?;
            let mut old = BufReader::new(File::open(&self.path)?);
            io::copy(&mut (&mut old).take(HEADER as u64), &mut io::sink())?;
            let mut vector = vec![0; width * 4];
            for name in BufReader::new(File::open(&list)?).lines() {
                let name = name?;
                old.read_exact(&mut vector)?;
                if is_wanted(&unescaped(&name)) {
                    vectors.write_all(&vector)?;
                    paths.write_all(format!("{name}\n").as_bytes())?;
                    rows += 1;
                }
            }
            // A crash of the machine right after a rename would otherwise leave an empty file under the name.
            vectors.sync_all()?;
            paths.sync_all()?;
            // While the list is empty, no vector counts: an interruption costs work, but no vector gets another's path.
            self.paths.set_len(0)?;
            fs::rename(&new, &self.path)?;
            fs::rename(&new_list, &list)?;
            Ok(rows)
        };
        let error = |error: io::Error| OutputError::of("write", &self.path, error);
        self.rows = copied().map_err(error)?;
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        (self.vectors, self.paths) =
            (open(&self.path).map_err(error)?, open(&list).map_err(error)?);
        self.cut().map_err(|error| OutputError::of("write", &self.path, error))
    }

    /// Appends the vector of an answer. The vector comes first and the path last, so a path always has its vector.
    ///
    /// # Errors
    /// If it cannot be written, or is not as long as the others.
    pub(super) fn push(
        &mut self,
        name: &str,
        answer: &Map<String, Value>,
    ) -> Result<(), OutputError> {
        let values = answer.get("embedding").and_then(Value::as_array);
        let values: Vec<f32> = values
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .map(|value| value as f32)
            .collect();
        let width = *self.width.get_or_insert(values.len());
        if width != values.len() || width == 0 {
            return Err(OutputError::Width {
                path: self.path.clone(),
                expected: width,
                found: values.len(),
            });
        }
        let mut written = || -> io::Result<()> {
            if self.rows == 0 {
                self.vectors.set_len(0)?;
                self.paths.set_len(0)?;
                self.vectors.seek(SeekFrom::Start(0))?;
                self.vectors.write_all(&header(0, width))?;
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.vectors.seek(SeekFrom::Start(HEADER as u64 + self.rows * bytes.len() as u64))?;
            self.vectors.write_all(&bytes)?;
            self.vectors.seek(SeekFrom::Start(0))?;
            self.vectors.write_all(&header(self.rows + 1, width))?;
            self.paths.seek(SeekFrom::End(0))?;
            self.paths.write_all(format!("{}\n", escaped(name)).as_bytes())
        };
        written().map_err(|error| OutputError::of("write", &self.path, error))?;
        self.rows += 1;
        Ok(())
    }

    /// Cuts both files behind the last complete row.
    fn cut(&mut self) -> io::Result<()> {
        let width = self.width.unwrap_or(0);
        self.vectors.set_len(HEADER as u64 + self.rows * 4 * width as u64)?;
        self.vectors.seek(SeekFrom::Start(0))?;
        self.vectors.write_all(&header(self.rows, width))?;
        let mut length = 0;
        for name in BufReader::new(&self.paths).split(b'\n').take(self.rows as usize) {
            length += name?.len() as u64 + 1;
        }
        self.paths.set_len(length)
    }
}

/// Returns the paths of the complete rows, and the width of a vector.
fn consistent(path: &Path, list: &Path) -> Result<(Vec<String>, Option<usize>), OutputError> {
    let read = |error: io::Error| OutputError::of("read", path, error);
    let mut file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut begin = Vec::new();
    (&mut file).take(HEADER as u64).read_to_end(&mut begin).map_err(read)?;
    let Some(width) = width_of(&begin) else { return Err(OutputError::NotNpy(path.into())) };
    let vectors = (length - HEADER as u64) / (4 * width as u64);
    let names = match fs::read(list) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(|error| OutputError::of("read", list, error))?,
    };
    let whole = names.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let names = String::from_utf8_lossy(&names[..whole]);
    let names: Vec<String> = names.lines().take(vectors as usize).map(unescaped).collect();
    let width = (!names.is_empty()).then_some(width);
    Ok((names, width))
}

/// Returns the file with the paths: `vectors.npy` has `vectors.paths.txt`.
fn list_of(path: &Path) -> PathBuf {
    path.with_extension("paths.txt")
}

/// Returns the header. Source: `numpy/lib/format.py`, format 1.0.
fn header(rows: u64, width: usize) -> Vec<u8> {
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((HEADER as u16 - 10).to_le_bytes());
    header.extend(
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}").bytes(),
    );
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}

/// Returns the width of the vectors of a file that this program wrote.
fn width_of(header: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(header.get(10..HEADER)?).ok()?;
    let shape = text.strip_prefix("{'descr': '<f4', 'fortran_order': False, 'shape': (")?;
    shape.split([',', ')']).nth(1)?.trim().parse().ok().filter(|&width| width > 0)
}

/// Writes line breaks of a path as `\n`, so that each path is one line.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

fn unescaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name.chars();
    while let Some(char) = rest.next() {
        text.push(match char {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                _ => '\\',
            },
            other => other,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(values: &[f32]) -> Map<String, Value> {
        json!({"embedding": values}).as_object().unwrap().clone()
    }

    fn temporary(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("blip-npy-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder.join("v.npy")
    }

    #[test]
    fn a_torn_end_is_cut_and_the_rest_is_kept() {
        let path = temporary("torn");
        let (mut npy, done) = Npy::open(&path, Existing::Refuse).unwrap();
        assert!(done.is_empty());
        npy.push("a\n\\b", &answer(&[1.0, 2.0])).unwrap();
        npy.push("c", &answer(&[3.0, 4.0])).unwrap();
        drop(npy);
        // As if the process had ended while it wrote the second path.
        let list = list_of(&path);
        fs::write(&list, b"a\\n\\\\b\nc").unwrap();
        let (mut npy, done) = Npy::open(&path, Existing::Resume).unwrap();
        assert_eq!(done, HashSet::from(["a\n\\b".to_owned()]));
        npy.push("d", &answer(&[5.0, 6.0])).unwrap();
        drop(npy);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(&bytes[..HEADER], header(2, 2));
        let values: Vec<f32> = bytes[HEADER..]
            .chunks(4)
            .map(|it| f32::from_le_bytes(it.try_into().unwrap()))
            .collect();
        assert_eq!(values, [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(fs::read_to_string(&list).unwrap(), "a\\n\\\\b\nd\n");
        assert!(matches!(Npy::open(&path, Existing::Refuse), Err(OutputError::Exists(_))));
        let (mut npy, _) = Npy::open(&path, Existing::Resume).unwrap();
        npy.retain(&|name| name == "d").unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), HEADER + 8);
        assert_eq!(fs::read_to_string(&list).unwrap(), "d\n");
        assert!(matches!(npy.push("e", &answer(&[1.0])), Err(OutputError::Width { .. })));
    }
}
