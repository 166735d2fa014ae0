//! CPU kernels: matrix products over packed weights, attention, and what stands between them.
//!
//! - [`isa`]: instruction sets, found at run time, and the vocabulary that everything else is written in once;
//! - [`gemm`]: `x W^T + b` with its epilogues, in f32, bf16 and 8-bit integers;
//! - [`attention`]: over packed memories, and causally over few rows;
//! - [`pointwise`]: exp, GELU, layer norm;
//! - [`activation`]: the other activations of feed-forward layers;
//! - [`rows`]: views of rows;
//! - [`pool`]: the threads;
//! - [`limits`]: what the machine could do at most.
//!
//! Nothing here knows of models or tensors: slices in, slices out, row by row. Besides the standard library only `rustix` is used,
//! to ask for huge pages.

#![expect(
    clippy::inline_always,
    reason = "generic code gets a level's instructions only by being inlined where they are enabled"
)]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "groups are bits, read as whatever number their format says"
)]

pub mod activation;
pub mod attention;
pub mod gemm;
pub mod isa;
pub mod limits;
mod memory;
pub mod pointwise;
pub mod pool;
pub mod rows;
#[cfg(test)]
pub(crate) mod testing;
