//! The test's side of the control block: which call of a server fails, and what the server called.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::layout;

/// The call that fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    /// A name in `layout::KINDS`.
    pub(super) kind: &'static str,
    /// Counted from 1; 0 makes none fail.
    pub(super) nth: u64,
    /// An `errno`, or `layout::SHORT`.
    pub(super) action: u64,
    /// Smallest allocation in bytes that counts.
    pub(super) min_bytes: u64,
}

/// Counts all calls and makes none fail.
pub(super) const COUNT: Fault = Fault { kind: "open", nth: 0, action: 0, min_bytes: u64::MAX };

/// What a server called while the block was armed.
#[derive(Debug)]
pub(super) struct Seen {
    /// The fault took place.
    pub(super) hit: bool,
    /// Which call failed: its name and what it was about (a path, a number of bytes). Empty if none failed.
    pub(super) place: String,
    counts: Vec<u64>,
}

impl Seen {
    /// Number of calls of a kind.
    pub(super) fn count(&self, kind: &str) -> u64 {
        self.counts[index(kind)]
    }
}

/// Index of a kind in `layout::KINDS`.
fn index(kind: &str) -> usize {
    layout::KINDS.iter().position(|name| *name == kind).expect("a kind of the shim")
}

/// The control block of one server.
pub(super) struct Control {
    directory: TempDir,
    file: File,
}

impl Control {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        std::fs::write(&path, [0; layout::BYTES]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { directory, file }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("control")
    }

    /// Starts to count; from now on the fault can take place.
    pub(super) fn arm(&self, fault: Fault) {
        self.set(layout::ARMED, 0);
        self.file.write_all_at(&[0; layout::BYTES], 0).unwrap();
        self.set(layout::KIND, index(fault.kind) as u64);
        self.set(layout::NTH, fault.nth);
        self.set(layout::ACTION, fault.action);
        self.set(layout::MIN_BYTES, fault.min_bytes);
        self.set(layout::ARMED, 1);
    }

    /// Ends counting.
    pub(super) fn disarm(&self) -> Seen {
        self.set(layout::ARMED, 0);
        let mut block = [0; layout::BYTES];
        self.file.read_exact_at(&mut block, 0).unwrap();
        let field = |index: usize| {
            let (at, mut bytes) = (index * 8, [0; 8]);
            bytes.copy_from_slice(&block[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        let place = block[layout::PLACE..].split(|byte| *byte == 0).next().unwrap_or_default();
        Seen {
            hit: field(layout::HITS) > 0,
            place: String::from_utf8_lossy(place).into_owned(),
            counts: (0..layout::KINDS.len()).map(|kind| field(layout::COUNTS + kind)).collect(),
        }
    }

    fn set(&self, index: usize, value: u64) {
        self.file.write_all_at(&value.to_ne_bytes(), index as u64 * 8).unwrap();
    }
}
