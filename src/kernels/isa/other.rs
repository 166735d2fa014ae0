//! The levels of an architecture that has no kernels of its own: only the portable level.

use crate::kernels::isa::level::levels;

levels! {}
