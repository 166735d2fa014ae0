//! Parity tests of the operations on the first NVIDIA GPU of this machine, if it has one.

#[path = "graphs.rs"]
mod graphs;

use std::sync::Arc;

use crate::gpu::cuda::{CudaDevice, KernelSource, probe};
use crate::gpu::device::Format as GpuFormat;
use crate::gpu::kernels::source;
use crate::model::ops::gpu::GpuOps;

suite!(GpuOps, on_cuda(GpuFormat::F32));

/// Size of the KV cache in bytes.
const KV_BYTES: u64 = 64 << 20;

/// Returns operations on the first GPU that the kernels support; `None` if there is none.
pub(super) fn on_cuda(format: GpuFormat) -> Option<GpuOps> {
    let devices = probe().unwrap_or_default();
    let Some(info) = devices.into_iter().find(|info| info.check_architecture().is_ok()) else {
        eprintln!("skipped: this machine has no NVIDIA GPU that the kernels support");
        return None;
    };
    let kernels = KernelSource { cuda: source::cuda_source(), ptx: source::PTX };
    let device = CudaDevice::try_new(info.ordinal, &kernels).unwrap();
    Some(GpuOps::new(Arc::new(device), format, KV_BYTES))
}
