//! Parity tests of the operations on a GPU. The kernels run on the CPU, in a shim that the system's C++ compiler builds,
//! where one generated token takes milliseconds. So only some of the generated texts are compared; the tests on a GPU
//! (`cuda`) compare all of them.

#[path = "graphs.rs"]
mod graphs;

use std::sync::Arc;

use crate::gpu::device::Format as GpuFormat;
use crate::gpu::host::HostDevice;
use crate::model::ops::gpu::GpuOps;

suite!(GpuOps, on_host(GpuFormat::F32), 6);

/// Size of the KV cache in bytes.
const KV_BYTES: u64 = 1 << 20;

/// Returns operations whose kernels run on the CPU; `None` if there is no C++ compiler.
pub(super) fn on_host(format: GpuFormat) -> Option<GpuOps> {
    Some(GpuOps::new(Arc::new(HostDevice::try_new()?), format, KV_BYTES))
}
