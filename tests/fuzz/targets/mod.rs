//! What is fuzzed, one function a target: it panics where something is wrong, and returns nothing. The programs in
//! `tests/fuzz/bin` feed it with libFuzzer; `robustness::fuzz` replays the kept inputs in `cargo test`.

#![expect(clippy::unwrap_used, reason = "a target fails by panicking")]

pub(crate) mod allocations;
pub(crate) mod archive;
pub(crate) mod bodies;
pub(crate) mod checkpoint;
pub(crate) mod claims;
pub(crate) mod decode;
pub(crate) mod hdf5;
pub(crate) mod readers;
pub(crate) mod text;
