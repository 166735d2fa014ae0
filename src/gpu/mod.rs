//! GPU backend, below the model: devices that run our kernels, and the kernels themselves.
//!
//! - [`cuda`]: NVIDIA GPUs;
//! - [`device`]: what the model's operations need from a device, about a dozen calls;
//! - [`heap`]: memory in buffers that are reused;
//! - [`pages`]: the pages of KV caches;
//! - [`recorder`]: replaces repeated passes by graphs;
//! - [`kernels`]: the kernels, in CUDA C++, and the names and arguments with which they are launched;
//! - `host`, in tests: a device that runs the kernels on the CPU.
//!
//! `model::ops::gpu` builds the fused operations of the towers from these kernels. Nothing here knows about BLIP.

pub mod cuda;
pub mod device;
pub mod heap;
#[cfg(test)]
pub mod host;
pub mod kernels;
pub mod pages;
pub mod recorder;
#[cfg(test)]
mod tests;
