//! Instruction sets: which ones exist, which of them this CPU supports, and how a kernel is written once for all of
//! them.
//!
//! A [`Level`] is only a name. A value of a type that implements `Isa` is proof that the CPU supports the instructions,
//! and provides the vector operations that kernels are written in. A `Kernel` is a function over any `Isa`, together
//! with its arguments. `Level::run` contains a copy of the function for each level, compiled for that level's
//! instructions. It detects the `Isa` of its level and calls the copy for that level.
//!
//! Each architecture has a folder, which defines its levels. Levels for Arm would need three additions: the `mod` and
//! `pub use` lines of a folder `aarch64` in this file, a condition that limits `other` to the remaining architectures,
//! and two files in the folder `aarch64`:
//!
//! - `sets.rs`: proof types with their detection and `impl Isa`. For example, `Neon` would stand for the set that every
//!   such CPU has, with vectors of four lanes and 12 x 2 accumulators in 32 registers. `NeonDot` would detect `i8mm`
//!   and `bf16` and replace two methods: `dot_int8` by `USDOT`, and `dot_bf16` by `BFDOT`. `Neon` would set `WIDENS_BF16`,
//!   and `NeonDot` would not.
//! - `levels.rs`: `levels! { ... }` with the name and the features of each level, as in `x86_64/levels.rs`.
//!
//! No kernel and no test of a kernel would have to change, unless a tile is larger than `MOST_ROWS` x `MOST_COLUMNS`.
//! To add a set with a matrix unit, also implement `matrix_tile` and remove the lint exception at `MatrixTile`.

mod lanes;
mod level;
#[cfg(not(target_arch = "x86_64"))]
mod other;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fmt;

pub(super) use lanes::{Isa, MOST_COLUMNS, MOST_ROWS, MatrixTile};
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
    /// Returns the fastest level that this CPU supports: the highest one, with the exceptions of `Isa::is_slow`.
    #[must_use]
    pub fn detect() -> Self {
        let own = |level: &Self| level.is_available() && !level.is_emulated() && !level.is_slow();
        Self::ALL.into_iter().rev().find(own).unwrap_or(Self::Portable)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_ascend_and_each_enables_the_features_of_the_one_before() {
        assert_eq!(Level::ALL[0], Level::Portable);
        assert!(Level::ALL.is_sorted());
        for (index, level) in Level::ALL.into_iter().enumerate() {
            let features = |level: Level| level.features().split(',');
            for lower in &Level::ALL[..index] {
                assert_ne!(level.name(), lower.name());
                for feature in features(*lower).filter(|feature| !feature.is_empty()) {
                    assert!(features(level).any(|own| own == feature), "{level} lacks {feature}");
                }
            }
        }
    }

    #[test]
    fn a_kernel_runs_with_the_set_of_its_level() {
        struct NameOf;
        impl Kernel for NameOf {
            type Output = &'static str;
            #[inline(always)]
            fn run<I: Isa>(self, _: I) -> &'static str {
                std::any::type_name::<I>()
            }
        }
        for level in crate::kernels::testing::levels() {
            let expected = format!("{level:?}");
            assert_eq!(level.run(NameOf).rsplit("::").next(), Some(expected.as_str()));
        }
    }
}
