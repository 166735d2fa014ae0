//! The levels of architectures for which there are no kernels of their own: only the portable one.

use crate::kernels::isa::level::levels;

levels! {}
