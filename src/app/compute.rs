//! Resolves the compute settings for this machine: device, number format, instruction set and threads. `loading` and
//! `bench` call it.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::mock::backend::MockBackend;
use crate::config::{ComputeSettings, DeviceChoice, DtypeChoice};
use crate::engine::backend::Backend;
use crate::engine::{Engine, EngineContext, EngineSettings, StartError, WorkerBackend};
use crate::gpu::cuda::{self, CommittedBecause, CudaDevice, KernelCode, KernelSource};
use crate::gpu::device::{self as gpu_device, Device as _};
use crate::gpu::kernels::source;
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::model::ops::candle::CandleOps;
use crate::model::ops::cpu::CpuOps;
use crate::model::ops::gpu::GpuOps;
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
    Gpu(GpuOps),
}

/// The backends of the workers: loaded models with the function that reloads them, or mocks.
pub(super) enum LoadedBackends {
    Kernels(Backends<BlipBackend<CpuOps>>),
    Candle(Backends<BlipBackend<CandleOps>>),
    Gpu(Backends<BlipBackend<GpuOps>>),
    Mock(Backends<MockBackend>),
}

/// One backend for each worker: on the CPU one, else one for each GPU.
pub(super) struct Backends<B> {
    pub(super) first: WorkerBackend<B>,
    pub(super) others: Vec<WorkerBackend<B>>,
}

impl LoadedBackends {
    /// Starts one worker for each backend.
    ///
    /// # Errors
    /// [`StartError`].
    pub(super) fn start(
        self,
        settings: EngineSettings,
        context: EngineContext,
    ) -> Result<Engine, StartError> {
        match self {
            Self::Kernels(backends) => backends.start(settings, context),
            Self::Candle(backends) => backends.start(settings, context),
            Self::Gpu(backends) => backends.start(settings, context),
            Self::Mock(backends) => backends.start(settings, context),
        }
    }
}

impl<B: Backend + Send + 'static> Backends<B> {
    fn start(self, settings: EngineSettings, context: EngineContext) -> Result<Engine, StartError> {
        Engine::start_workers(self.first, self.others, settings, context)
    }
}

/// Returns "1 thread", "2 threads".
fn thread_count(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

impl Compute {
    /// Replaces every `auto`. The device becomes the first GPU that the kernels support, if there is one, else the CPU. The
    /// number format becomes bf16: every level of the CPU multiplies it at least as fast as f32, and reads half as many bytes
    /// of weights. With several GPUs, this is for the first; [`for_further_gpus`](Self::for_further_gpus) has the others.
    pub(super) fn resolve(settings: ComputeSettings) -> Self {
        let device = match settings.device {
            DeviceChoice::Cuda(gpus) => Device::Cuda(gpus.first()),
            // Only the CPU backend supports int8.
            DeviceChoice::Auto if settings.dtype == DtypeChoice::Int8 => Device::Cpu,
            DeviceChoice::Auto => usable_gpu().map_or(Device::Cpu, Device::Cuda),
            DeviceChoice::Cpu => Device::Cpu,
        };
        let level = Self::level(settings);
        let dtype = match settings.dtype {
            DtypeChoice::F32 => Dtype::F32,
            DtypeChoice::Bf16 | DtypeChoice::Auto => Dtype::Bf16,
            DtypeChoice::F16 => Dtype::F16,
            DtypeChoice::Int8 => Dtype::Int8,
        };
        let threads = settings.threads.or_else(|| std::thread::available_parallelism().ok());
        Self {
            placement: Placement { device, dtype },
            level,
            threads: threads.map_or(1, NonZeroUsize::get),
        }
    }

    /// Returns the same settings for each GPU after the first.
    pub(super) fn for_further_gpus(self, settings: ComputeSettings) -> Vec<Self> {
        let DeviceChoice::Cuda(gpus) = settings.device else { return Vec::new() };
        let on = |ordinal| Placement { device: Device::Cuda(ordinal), ..self.placement };
        gpus.others().map(|ordinal| Self { placement: on(ordinal), ..self }).collect()
    }

    /// Checks that the device can be used, as far as that is known without opening it.
    ///
    /// # Errors
    /// When a GPU cannot be used.
    pub(super) fn check_device(self) -> Result<(), LoadError> {
        let Device::Cuda(ordinal) = self.placement.device else { return Ok(()) };
        let checked = cuda::check_usable(ordinal).map(drop);
        checked.map_err(|error| self.gpu_error(&error))
    }

    /// Returns the error about a GPU that was chosen and cannot be used.
    fn gpu_error(self, error: &dyn Display) -> LoadError {
        LoadError::Device {
            device: self.placement.device.to_string(),
            detail: format!(
                "{error}; or run on the CPU: set --device auto or cpu (compute.device)"
            ),
        }
    }

    /// Says what is wrong if more threads run the models than this process has CPUs.
    pub(super) fn too_many_threads(threads: usize, usable: usize) -> Option<String> {
        (threads > usable).then(|| {
            format!(
                "{} the models, but CPU quota and affinity allow {usable} CPUs: the threads will wait for each other",
                Self::threads_run(threads)
            )
        })
    }

    /// Returns "1 thread runs", "2 threads run".
    pub(super) fn threads_run(threads: usize) -> String {
        format!("{} {}", thread_count(threads), if threads == 1 { "runs" } else { "run" })
    }

    /// Logs a warning if more threads run the models than this process has CPUs.
    fn warn_of_threads(self) {
        let usable = std::thread::available_parallelism().map_or(self.threads, NonZeroUsize::get);
        if let Some(fault) = Self::too_many_threads(self.threads, usable) {
            tracing::warn!(
                cpu.threads = self.threads,
                "{fault}; set compute.threads to 0 or to at most {usable}"
            );
        }
    }

    /// Returns the instruction set of the CPU kernels.
    pub(super) fn level(settings: ComputeSettings) -> Level {
        settings.cpu_isa.unwrap_or_else(Level::detect)
    }

    /// Opens the device and creates the operations for it. On a GPU, the KV caches take up to `kv_bytes`.
    ///
    /// # Errors
    /// When the device cannot be opened, does not support the number format, or the threads cannot be started.
    pub(super) fn ops(self, kv_bytes: u64) -> Result<ChosenOps, LoadError> {
        if let Device::Cuda(ordinal) = self.placement.device {
            return self.gpu_ops(ordinal, kv_bytes).map(ChosenOps::Gpu);
        }
        self.warn_of_threads();
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
            "computing with {} instructions in {} on {}",
            self.level,
            self.placement.dtype.name(),
            thread_count(self.threads)
        );
        let ops = CpuOps::try_new(self.level, format, self.threads);
        let ops = ops.map_err(|error| LoadError::Device {
            device: self.placement.device.to_string(),
            detail: format!("cannot start {} compute threads: {error}", self.threads),
        })?;
        Ok(ChosenOps::Kernels(ops))
    }

    fn gpu_ops(self, ordinal: usize, kv_bytes: u64) -> Result<GpuOps, LoadError> {
        let refused = |detail: String| LoadError::Device {
            device: self.placement.device.to_string(),
            detail,
        };
        let format = match self.placement.dtype {
            Dtype::F32 => gpu_device::Format::F32,
            Dtype::Bf16 => gpu_device::Format::Bf16,
            Dtype::F16 => gpu_device::Format::F16,
            Dtype::Int8 => return Err(refused("int8 runs on CPUs only".to_owned())),
        };
        let kernels = KernelSource { cuda: source::cuda_source(), ptx: source::PTX };
        let device =
            CudaDevice::try_new(ordinal, &kernels).map_err(|error| self.gpu_error(&error))?;
        if let KernelCode::Committed(CommittedBecause::Failed(messages)) = device.kernel_code() {
            tracing::warn!(
                messages,
                "cannot compile the kernels for this GPU; using those of sm_80"
            );
        }
        tracing::info!(
            dtype = self.placement.dtype.name(),
            "computing in {} on {}, {}",
            self.placement.dtype.name(),
            device.description(),
            device.kernel_code()
        );
        tracing::warn!(
            "the GPU kernels of this version were tested in a simulation, never on a GPU: compare some answers with those \
             of --device cpu before you rely on them"
        );
        Ok(GpuOps::new(Arc::new(device), format, kv_bytes))
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
                "computing with candle on {}",
                thread_count(self.threads)
            ),
            // Only reached by a second server in the same process, as in tests.
            Err(error) => tracing::debug!(%error, "the rayon thread pool was already started"),
        }
    }
}

/// Returns the ordinal of the first GPU that can be used. If there is none, logs why the CPU is used; if there are more,
/// logs how to use them.
fn usable_gpu() -> Option<usize> {
    let log = |reason: &cuda::CudaUnavailable| {
        if reason.is_without_gpu() {
            tracing::info!("using the CPU, because no GPU can be used: {reason}");
        } else {
            tracing::warn!("using the CPU, because the GPU cannot be used: {reason}");
        }
    };
    let ordinals = cuda::usable().inspect_err(log).ok()?;
    if ordinals.len() > 1 {
        let all = ordinals.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        tracing::info!(
            "using one of {} GPUs; --device cuda:{all} uses all of them",
            ordinals.len()
        );
    }
    ordinals.first().copied()
}
