//! Everything that is specific to x86-64.
//!
//! - `levels`: the list of the levels;
//! - `sets`: the proof types, with their detection and their vector operations;
//! - `amx`: the matrix unit;
//! - `emulator`: emulates the matrix unit, for tests on machines without it.

mod amx;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
mod levels;
mod sets;

pub use levels::Level;
