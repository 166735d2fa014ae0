//! The macro `levels!`, with which an architecture lists its levels.

/// Defines `Level` from the list of an architecture's levels, in ascending order. The portable level comes first and is
/// not listed.
///
/// A level has the name of its proof type, which must be in scope. `name` is the value of the setting `cpu_isa`.
/// `features` are the features that the kernels are compiled with; the proof type's `detect` must check all of them.
macro_rules! levels {
    ($($(#[$doc:meta])* $level:ident {
        name: $name:literal, features: $features:literal $(,)?
    })*) => {
        use $crate::kernels::isa::{Isa, Kernel, Portable};

        /// Instruction set level that kernels are compiled for. The levels are in ascending order, and each includes
        /// those before it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Level {
            /// Instructions that every CPU of the architecture has (SSE2, NEON).
            Portable,
            $($(#[$doc])* $level,)*
        }

        impl Level {
            /// All levels in ascending order.
            pub const ALL: [Self; 1 + <[&str]>::len(&[$($name),*])] = [Self::Portable, $(Self::$level),*];

            /// True if this CPU and its operating system support all instructions of the level.
            #[must_use]
            pub fn is_available(self) -> bool {
                match self {
                    Self::Portable => Portable::detect().is_some(),
                    $(Self::$level => $level::detect().is_some(),)*
                }
            }

            /// True if this CPU has the instructions of the level, but the operating system refused this process the
            /// permission to use them.
            #[must_use]
            pub fn is_refused(self) -> bool {
                match self {
                    Self::Portable => Portable::is_refused(),
                    $(Self::$level => $level::is_refused(),)*
                }
            }

            /// True if this CPU has the instructions of the level, but a lower level is faster on it.
            #[must_use]
            pub fn is_slow(self) -> bool {
                match self {
                    Self::Portable => Portable::is_slow(),
                    $(Self::$level => $level::is_slow(),)*
                }
            }

            /// Returns the name of the level, as in the setting `cpu_isa`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    Self::Portable => "portable",
                    $(Self::$level => $name,)*
                }
            }

            /// Returns the features that kernels are compiled with, separated by commas.
            #[cfg(test)]
            pub(in $crate::kernels) fn features(self) -> &'static str {
                match self {
                    Self::Portable => "",
                    $(Self::$level => $features,)*
                }
            }

            /// Runs the kernel, compiled for the level's instructions.
            ///
            /// # Panics
            /// If the CPU does not support the level. Callers check `is_available` when they choose a level.
            pub(in $crate::kernels) fn run<K: Kernel>(self, kernel: K) -> K::Output {
                match self {
                    Self::Portable => kernel.run(Portable),
                    $(Self::$level => {
                        #[target_feature(enable = $features)]
                        fn enter<K: Kernel>(isa: $level, kernel: K) -> K::Output {
                            kernel.run(isa)
                        }
                        let isa = $level::detect().expect("the level was checked when it was chosen");
                        // SAFETY: `isa` proves that the CPU has these instructions.
                        unsafe { enter(isa, kernel) }
                    })*
                }
            }

            /// True if tests emulate the instructions of this level in software.
            pub(in $crate::kernels) fn is_emulated(self) -> bool {
                match self {
                    Self::Portable => Portable::is_emulated(),
                    $(Self::$level => $level::is_emulated(),)*
                }
            }

            /// Makes the level available by emulation, if this CPU lacks it and emulation is possible.
            #[cfg(test)]
            pub(in $crate::kernels) fn emulate(self) {
                match self {
                    Self::Portable => Portable::emulate(),
                    $(Self::$level => $level::emulate(),)*
                }
            }

            /// Returns the number of products that have been emulated on this thread so far.
            #[cfg(test)]
            pub(in $crate::kernels) fn emulated_products(self) -> usize {
                match self {
                    Self::Portable => Portable::emulated_products(),
                    $(Self::$level => $level::emulated_products(),)*
                }
            }
        }
    };
}
pub(super) use levels;
