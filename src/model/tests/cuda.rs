//! Parity tests of the operations on the first NVIDIA GPU of this machine, if it has one.

#[path = "graphs.rs"]
mod graphs;

use std::sync::Arc;

use crate::gpu::cuda::{CudaDevice, KernelSource, usable};
use crate::gpu::device::Format as GpuFormat;
use crate::gpu::kernels::source;
use crate::model::ops::gpu::GpuOps;

suite!(GpuOps, on_cuda(GpuFormat::F32));

/// Size of the KV cache in bytes.
const KV_BYTES: u64 = 64 << 20;

/// Returns operations on the first GPU that the kernels support; `None` if there is none.
pub(super) fn on_cuda(format: GpuFormat) -> Option<GpuOps> {
    let usable = usable().inspect_err(|reason| eprintln!("skipped: {reason}"));
    let kernels = KernelSource { cuda: source::cuda_source(), ptx: source::PTX };
    let device = CudaDevice::try_new(usable.ok()?[0], &kernels).unwrap();
    Some(GpuOps::new(Arc::new(device), format, KV_BYTES))
}
