//! Resolves the compute settings for this machine: device, number format, instruction set and threads. `loading` and
//! `bench` call it.

use std::num::NonZeroUsize;

use super::mock::backend::MockBackend;
use crate::config::{ComputeSettings, DeviceChoice, DtypeChoice};
use crate::engine::Rebuild;
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::model::ops::candle::CandleOps;
use crate::model::ops::cpu::CpuOps;
use crate::model::{BlipBackend, LoadError, Placement};
use crate::task::{Device, Dtype};

/// The compute settings with every `auto` replaced by a concrete value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compute {
    pub(super) placement: Placement,
    /// Instruction set of the CPU kernels; unused if candle runs the models.
    pub(super) level: Level,
    /// Number of threads that run the models; at least 1.
    pub(super) threads: usize,
}

/// The implementation of the model operations that the loaded models use.
pub(super) enum ChosenOps {
    Kernels(CpuOps),
    Candle(CandleOps),
}

/// The backend for the worker: loaded models with the function that reloads them, or a mock.
pub(super) enum LoadedBackend {
    Kernels(BlipBackend<CpuOps>, Rebuild<BlipBackend<CpuOps>>),
    Candle(BlipBackend<CandleOps>, Rebuild<BlipBackend<CandleOps>>),
    Mock(MockBackend),
}

impl Compute {
    /// Replaces every `auto`. The device becomes a GPU if this build and this machine support one, else the CPU. The
    /// number format becomes bf16 on a GPU and on a CPU with bf16 instructions, which multiply bf16 faster than f32;
    /// otherwise it becomes f32.
    pub(super) fn resolve(settings: ComputeSettings) -> Self {
        let device = match settings.device {
            DeviceChoice::Cuda(ordinal) => Device::Cuda(ordinal),
            // Only the CPU backend supports int8.
            DeviceChoice::Auto if settings.dtype == DtypeChoice::Int8 => Device::Cpu,
            DeviceChoice::Auto if candle_core::utils::cuda_is_available() => Device::Cuda(0),
            DeviceChoice::Auto | DeviceChoice::Cpu => Device::Cpu,
        };
        let level = settings.cpu_isa.unwrap_or_else(Level::detect);
        let dtype = match (settings.dtype, device) {
            (DtypeChoice::Auto, Device::Cpu) if !level.has_bf16() => Dtype::F32,
            (DtypeChoice::F32, _) => Dtype::F32,
            (DtypeChoice::Bf16 | DtypeChoice::Auto, _) => Dtype::Bf16,
            (DtypeChoice::F16, _) => Dtype::F16,
            (DtypeChoice::Int8, _) => Dtype::Int8,
        };
        let threads = settings.threads.or_else(|| std::thread::available_parallelism().ok());
        Self {
            placement: Placement { device, dtype },
            level,
            threads: threads.map_or(1, NonZeroUsize::get),
        }
    }

    /// Opens the device and creates the operations for it.
    ///
    /// # Errors
    /// When the device cannot be opened, does not support the number format, or the threads cannot be started.
    pub(super) fn ops(self) -> Result<ChosenOps, LoadError> {
        let Some(format) = self.kernel_format() else {
            self.size_rayon();
            return self.placement.candle_ops().map(ChosenOps::Candle);
        };
        let refused = || Level::ALL.into_iter().any(Level::is_refused);
        if self.level == Level::detect() && format != Format::F32 && refused() {
            tracing::warn!(
                "this CPU has AMX, but the operating system does not let this process use it: inference will take \
                 several times as long; in a container, allow arch_prctl in the seccomp profile"
            );
        }
        tracing::info!(
            cpu.threads = self.threads,
            cpu.isa = self.level.name(),
            dtype = self.placement.dtype.name(),
            "computing with {} instructions in {} on {} threads",
            self.level,
            self.placement.dtype.name(),
            self.threads
        );
        let ops = CpuOps::try_new(self.level, format, self.threads);
        let ops = ops.map_err(|error| LoadError::Device {
            device: self.placement.device.to_string(),
            detail: format!("cannot start {} compute threads: {error}", self.threads),
        })?;
        Ok(ChosenOps::Kernels(ops))
    }

    /// Returns the number format of the CPU kernels; `None` if candle runs the models.
    pub(super) fn kernel_format(self) -> Option<Format> {
        match (self.placement.device, self.placement.dtype) {
            (Device::Cpu, Dtype::F32) => Some(Format::F32),
            (Device::Cpu, Dtype::Bf16) => Some(Format::Bf16),
            (Device::Cpu, Dtype::Int8) => Some(Format::Int8),
            (Device::Cpu, Dtype::F16) | (Device::Cuda(_), _) => None,
        }
    }

    /// Sizes the global rayon thread pool, on which candle computes, before anything uses it. By default, rayon starts
    /// one thread per core of the machine and ignores the CPU quota of the container.
    fn size_rayon(self) {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|i| format!("blip-cpu-{i}"));
        match pool.build_global() {
            Ok(()) => tracing::info!(
                cpu.threads = self.threads,
                "computing with candle on {} threads",
                self.threads
            ),
            // Only reached by a second server in the same process, as in tests.
            Err(error) => tracing::debug!(%error, "the rayon thread pool was already started"),
        }
    }
}
