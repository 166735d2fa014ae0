//! CPU kernels: matrix products over packed weights, attention, and the operations between them.
//!
//! - [`context`]: the level, thread pool and scratch memory with which every kernel runs;
//! - [`isa`]: instruction sets, detected at run time, and the vector operations that all kernels are written in;
//! - [`gemm`]: `x W^T + b` with its epilogues, in f32, bf16 and 8-bit integers;
//! - [`attention`]: attention over packed keys and values, and causal attention over few rows;
//! - [`pointwise`]: exp, GELU, layer norm;
//! - [`activation`]: the other activations of feed-forward layers;
//! - [`rows`]: views of matrix rows;
//! - `disjoint`: the pointer through which the parts of a job write to one buffer;
//! - [`pool`]: the thread pool;
//! - [`limits`]: measures upper limits of the machine's speed.
//!
//! Nothing here knows about models or tensors: the kernels read and write slices, row by row. Besides the standard
//! library, the kernels depend only on `rustix`, with which they request huge pages.

#![expect(
    clippy::inline_always,
    reason = "generic code uses a level's instructions only if it is inlined into a function that enables them"
)]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a group (see `isa::lanes::Isa`) is raw bits, which each format interprets as its own type of number"
)]

pub mod activation;
mod aligned_buffer;
pub mod attention;
pub mod context;
mod disjoint;
pub mod gemm;
pub mod isa;
pub mod limits;
#[cfg(test)]
mod planted;
pub mod pointwise;
pub mod pool;
pub mod rows;
#[cfg(test)]
pub(crate) mod testing;

pub use aligned_buffer::OutOfMemory;
