//! Real models through the real engine and the real server: the tiny checkpoints of `tests/fixtures`, which
//! transformers wrote, and the demo models. What every tower computes is held against the reference in `src/model/tests`; here it is
//! the whole that is tested: batch neighbours, many clients at once, texts and numbers as a client sees them.

mod batch_neighbours;
#[cfg(feature = "demo")]
mod demo;
mod explain;
mod load;
mod parameters;
mod parity;
mod resolution;
mod server;
mod states;
mod tasks;
mod tensorflow;
mod tensors;
mod urls;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// `tests/fixtures`.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `reference/{name}.json`.
pub(crate) fn reference(name: &str) -> Value {
    let path = fixtures().join("reference").join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The bytes of `photos/{name}.png`.
pub(crate) fn photo(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("photos").join(format!("{name}.png"))).unwrap()
}

/// Every photo's name.
pub(crate) const PHOTOS: [&str; 4] = ["chelsea", "coffee", "rocket", "whiskers"];
