//! [`Device`](super::device::Device) on NVIDIA GPUs: the CUDA driver, NVRTC and cuBLASLt.
//!
//! All three libraries are opened at run time, so the same binary also starts on hosts without a GPU. [`probe()`] lists
//! the devices of this host, and [`CudaDevice::try_new`] opens one; both say what is missing where they cannot.
//!
//! - `library`: which of the libraries are there, and whether they have the functions that we call;
//! - `status`: status codes, and which errors they become;
//! - `probe`: the devices of this host;
//! - `unavailable`: why there is no usable device, and what to do about it;
//! - `context`: the context, the stream and the module of the kernels;
//! - `compile`: machine code of the kernels, from NVRTC or from the PTX in this binary;
//! - `staging`: pinned host memory, through which uploads and downloads go;
//! - `products`: matrix products by cuBLASLt;
//! - `device`: puts them together.
//!
//! The functions are those of `cudarc`'s `sys` modules, which are generated from NVIDIA's headers. Its safe layer does
//! not fit: it owns allocations one by one, and records an event for each of them, which costs a fifth of the speed of
//! small models (cudarc #387).

mod compile;
mod context;
mod device;
mod library;
#[cfg(test)]
mod on_device;
mod probe;
mod products;
mod staging;
mod status;
mod unavailable;

pub use compile::{CommittedBecause, KernelCode, KernelSource};
pub use device::{CudaDevice, first_usable, usable};
pub use probe::{DeviceInfo, probe};
pub use unavailable::{CudaUnavailable, Version};
