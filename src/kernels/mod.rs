//! CPU kernels: matrix products over packed weights, attention, and the operations between them.
//!
//! - [`isa`]: instruction sets, detected at run time, and the vector operations that all kernels are written in;
//! - [`gemm`]: `x W^T + b` with its epilogues, in f32, bf16 and 8-bit integers;
//! - [`attention`]: over packed keys and values, and causally over few rows;
//! - [`pointwise`]: exp, GELU, layer norm;
//! - [`activation`]: the other activations of feed-forward layers;
//! - [`rows`]: views of rows;
//! - [`pool`]: the thread pool;
//! - [`limits`]: upper limits of the machine's speed.
//!
//! Nothing here knows about models or tensors: the kernels read and write slices, row by row. `rustix` is the only
//! dependency besides the standard library; it requests huge pages.

#![expect(
    clippy::inline_always,
    reason = "generic code is compiled for a level only if it is inlined where its instructions are enabled"
)]
#![expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "groups are raw bits, which each format interprets as its own kind of number"
)]

pub mod activation;
mod aligned_buffer;
pub mod attention;
pub mod gemm;
pub mod isa;
pub mod limits;
pub mod pointwise;
pub mod pool;
pub mod rows;
#[cfg(test)]
pub(crate) mod testing;
