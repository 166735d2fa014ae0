//! Instruction sets: which ones exist, which of them this CPU supports, and how a kernel is written once for all of
//! them.
//!
//! A [`Level`] is only a name. An `Isa` value is proof that the CPU supports the instructions, and provides the vector
//! operations that kernels are written in. `per_level!` turns a [`Level`] into an `Isa` value and calls a function
//! compiled for it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(in crate::kernels) mod emulator;
mod lanes;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

pub(super) use lanes::{Isa, MatrixTile};
pub(super) use portable::{Portable, to_bf16};
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Amx, Avx2, Avx512, Avx512Bf16, Avx512Vnni};

/// Instruction set level that kernels are compiled for. The levels are in ascending order, and each includes those
/// before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Instructions that every CPU of the architecture has (SSE2, NEON).
    Portable,
    /// AVX2 and FMA: eight f32 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ, VL: sixteen f32 lanes.
    Avx512,
    /// AVX-512 with VNNI: dot products of four 8-bit integers.
    Avx512Vnni,
    /// AVX-512 with BF16: dot products of two bf16 values.
    Avx512Bf16,
    /// AMX: multiplies tiles of bf16 or 8-bit integers, accumulating into 16 x 16 sums (f32 or i32).
    Amx,
}

impl Level {
    /// All levels in ascending order.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Amx];

    /// Returns the highest level that this CPU supports.
    #[must_use]
    pub fn detect() -> Self {
        let own = |level: &Self| level.is_available() && !level.is_emulated();
        Self::ALL.into_iter().rev().find(own).unwrap_or(Self::Portable)
    }

    /// True if this CPU and its operating system support all instructions of the level.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::Avx2 => Avx2::detect().is_some(),
            Self::Avx512 => Avx512::detect().is_some(),
            Self::Avx512Vnni => Avx512Vnni::detect().is_some(),
            Self::Avx512Bf16 => Avx512Bf16::detect().is_some(),
            Self::Amx => Amx::detect().is_some(),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// True if tests emulate the instructions of this level in software.
    pub(in crate::kernels) fn is_emulated(self) -> bool {
        #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
        let emulated = emulator::is_installed();
        #[cfg(not(all(test, target_arch = "x86_64", target_os = "linux")))]
        let emulated = false;
        emulated && self == Self::Amx
    }

    /// True if this CPU has a matrix unit, but the operating system refused this process the permission to use it.
    #[must_use]
    pub fn amx_was_refused() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            amx::Support::of_this_process() == amx::Support::Refused
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// True if the level multiplies bf16 faster than f32.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }

    /// Returns the name of the level, as in the setting `cpu_isa`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Defines `$name(level, ...)`, which runs the generic `$generic(isa, ...)` compiled for the level's instructions.
///
/// The generic function and everything that it calls must be `#[inline(always)]`: only code that is inlined here is
/// compiled for a level's instructions. `$name` panics if the CPU does not support the level; callers check
/// `Level::is_available` when they choose a level.
macro_rules! per_level {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident $(<$($g:ident : $bound:path),+>)? ($($argument:ident : $type:ty),* $(,)?) = $generic:expr;) => {
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "entering a function compiled for more instructions"))]
        $visibility fn $name $(<$($g : $bound),+>)? (level: $crate::kernels::isa::Level, $($argument: $type),*) {
            use $crate::kernels::isa;
            #[cfg(target_arch = "x86_64")]
            {
                use isa::Level;
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($g : $bound),+>)? (isa: isa::Avx2, $($argument: $type),*) { $generic(isa, $($argument),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$($g : $bound),+>)? (isa: isa::Avx512, $($argument: $type),*) { $generic(isa, $($argument),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                fn avx512_vnni $(<$($g : $bound),+>)? (isa: isa::Avx512Vnni, $($argument: $type),*) { $generic(isa, $($argument),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
                fn avx512_bf16 $(<$($g : $bound),+>)? (isa: isa::Avx512Bf16, $($argument: $type),*) { $generic(isa, $($argument),*) }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
                fn amx $(<$($g : $bound),+>)? (isa: isa::Amx, $($argument: $type),*) { $generic(isa, $($argument),*) }
                const MISSING: &str = "the level was checked when it was chosen";
                match level {
                    Level::Portable => {}
                    Level::Avx2 => {
                        let isa = isa::Avx2::detect().expect(MISSING);
                        // SAFETY: `isa` proves that the CPU has these instructions.
                        return unsafe { avx2(isa, $($argument),*) };
                    }
                    Level::Avx512 => {
                        let isa = isa::Avx512::detect().expect(MISSING);
                        // SAFETY: as above.
                        return unsafe { avx512(isa, $($argument),*) };
                    }
                    Level::Avx512Vnni => {
                        let isa = isa::Avx512Vnni::detect().expect(MISSING);
                        // SAFETY: as above.
                        return unsafe { avx512_vnni(isa, $($argument),*) };
                    }
                    Level::Avx512Bf16 => {
                        let isa = isa::Avx512Bf16::detect().expect(MISSING);
                        // SAFETY: as above.
                        return unsafe { avx512_bf16(isa, $($argument),*) };
                    }
                    Level::Amx => {
                        let isa = isa::Amx::detect().expect(MISSING);
                        // SAFETY: as above.
                        return unsafe { amx(isa, $($argument),*) };
                    }
                }
            }
            let _ = level;
            $generic(isa::Portable, $($argument),*);
        }
    };
}
pub(super) use per_level;
