//! What computes: device, number format, instructions and threads, resolved from the settings and this machine.

use std::num::NonZeroUsize;

use crate::config::{ComputeSettings, DeviceChoice, DtypeChoice};
use crate::engine::Rebuild;
use crate::engine::fake::FakeBackend;
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::model::ops::candle::CandleOps;
use crate::model::ops::cpu::CpuOps;
use crate::model::{BlipBackend, LoadError, Placement};
use crate::task::{Device, Dtype};

/// The settings with every `auto` resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compute {
    /// Device and number format.
    pub(super) placement: Placement,
    /// Instructions of the kernels.
    pub(super) level: Level,
    /// Threads of the models' arithmetic.
    pub(super) threads: usize,
}

/// The operations that models are loaded for.
pub(super) enum ChosenOps {
    /// Our kernels.
    Kernels(CpuOps),
    /// candle's.
    Candle(CandleOps),
}

/// Loaded models over either, with the way to have them again; or a mock.
pub(super) enum LoadedBackend {
    /// Our kernels.
    Kernels(BlipBackend<CpuOps>, Rebuild<BlipBackend<CpuOps>>),
    /// candle's operations.
    Candle(BlipBackend<CandleOps>, Rebuild<BlipBackend<CandleOps>>),
    /// No models at all.
    Mock(FakeBackend),
}

impl Compute {
    /// `auto` is a GPU where this build and this machine have one; bf16 there, and on a CPU that multiplies bf16
    /// faster than f32; else f32.
    pub(super) fn resolve(settings: ComputeSettings) -> Self {
        let device = match settings.device {
            DeviceChoice::Cuda(ordinal) => Device::Cuda(ordinal),
            // Only CPUs have it here.
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

    /// The operations for this.
    ///
    /// # Errors
    /// When the device cannot be opened, or the format is not one of its.
    pub(super) fn ops(self) -> Result<ChosenOps, LoadError> {
        let Some(format) = self.kernel_format() else {
            self.size_rayon();
            return self.placement.candle_ops().map(ChosenOps::Candle);
        };
        if self.level == Level::detect() && format != Format::F32 && Level::amx_was_refused() {
            tracing::warn!(
                "this CPU has AMX, but the operating system does not let this process use it: captions and pictures \
                 will take several times as long; a container's seccomp profile must allow arch_prctl"
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
            detail: format!("no {} threads for the arithmetic: {error}", self.threads),
        })?;
        Ok(ChosenOps::Kernels(ops))
    }

    /// The kernels' format; `None` where candle computes.
    pub(super) fn kernel_format(self) -> Option<Format> {
        match (self.placement.device, self.placement.dtype) {
            (Device::Cpu, Dtype::F32) => Some(Format::F32),
            (Device::Cpu, Dtype::Bf16) => Some(Format::Bf16),
            (Device::Cpu, Dtype::Int8) => Some(Format::Int8),
            (Device::Cpu, Dtype::F16) | (Device::Cuda(_), _) => None,
        }
    }

    /// Sizes the pool that candle's arithmetic runs on before anything uses it. Its own default is the machine's
    /// cores, whatever the container's quota.
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
            // Only a second server in one process comes here, as tests make them.
            Err(error) => tracing::debug!(%error, "the arithmetic's threads were started before"),
        }
    }
}
