//! Instruction sets: which ones exist, which of them this CPU supports, and how a kernel is written once for all of
//! them.
//!
//! A [`Level`] is only a name. A value of a type that implements `Isa` is proof that the CPU supports the instructions,
//! and provides the vector operations that kernels are written in. A `Kernel` is a function over any `Isa`, together
//! with its arguments. `Level::run` compiles it once per level, detects the level's `Isa`, and calls the function that
//! was compiled for it.
//!
//! Every architecture has a module of its own, which defines its levels. Levels for Arm would take two files in a
//! folder `aarch64`, and two lines in this file that declare the folder and export its `Level`:
//!
//! - `sets.rs`: proof types such as `Neon`, which holds vectors of four lanes, and `Bf16`, which adds `BFDOT`
//!   (`is_aarch64_feature_detected!("bf16")`), each with `impl Isa`. Where the CPU has no instruction for a dot product,
//!   the implementation computes it from other instructions, as the portable level does.
//! - `levels.rs`: `levels! { ... }` with the name and the features of each level, as in `x86_64/levels.rs`.
//!
//! No kernel and no test of a kernel changes, unless a tile is larger than `gemm` allows (`MOST_ROWS`, `MOST_COLUMNS`).

mod lanes;
mod level;
#[cfg(not(target_arch = "x86_64"))]
mod other;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fmt;

pub(super) use lanes::{Isa, MatrixTile};
#[cfg(not(target_arch = "x86_64"))]
pub use other::Level;
pub(super) use portable::{Portable, to_bf16};
#[cfg(target_arch = "x86_64")]
pub use x86_64::Level;

/// A function that is compiled for every level, and its arguments.
pub(super) trait Kernel {
    /// Result of the function.
    type Output;

    /// Runs the function. `Level::run` calls this.
    ///
    /// Implementations and all functions that they call must be `#[inline(always)]`: only code that is inlined into
    /// `Level::run` is compiled for a level's instructions.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

impl Level {
    /// Returns the highest level that this CPU supports.
    #[must_use]
    pub fn detect() -> Self {
        let own = |level: &Self| level.is_available() && !level.is_emulated();
        Self::ALL.into_iter().rev().find(own).unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
