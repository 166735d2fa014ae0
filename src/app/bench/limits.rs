//! Describes the machine and measures the upper bounds of its speed. `bench` compares the measured times with these
//! bounds.

use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::app::compute::Compute;
use crate::config::ComputeSettings;
use crate::kernels::context::KernelContext;
use crate::kernels::isa::Level;
use crate::kernels::limits;

/// Size of the read buffer in bytes: many times the size of common caches, so that the reads come from memory. On
/// recent servers with a shared last-level cache of 260 MB, the measured rate is still a little too high.
const BUFFER_BYTES: usize = 250_000_000;

/// Duration of one timed measurement of matrix products: long compared with a thread's wake-up time, but too short for
/// a user to notice.
const PASS: Duration = Duration::from_millis(20);

/// The machine that runs the benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Name of the CPU, or its architecture if the operating system reports no name.
    pub cpu: String,
    /// Number of cores that this process may use.
    pub cores: usize,
    /// Instruction sets of the kernels that this CPU supports, from the least to the most capable.
    pub levels: Vec<&'static str>,
}

impl Machine {
    /// Describes the machine that this process runs on.
    #[must_use]
    pub fn detect() -> Self {
        let levels = Level::ALL.into_iter().filter(|level| level.is_available());
        Self {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            levels: levels.map(Level::name).collect(),
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// Measured upper bound of the arithmetic throughput for one number format and instruction set.
#[derive(Debug, Clone, PartialEq)]
pub struct ArithmeticBound {
    /// Number format, as `--dtype` spells it.
    pub dtype: &'static str,
    /// Instruction set of the kernels, as `--cpu-isa` spells it.
    pub level: &'static str,
    /// Number of multiplications and additions per second, for all threads together.
    pub operations_per_second: f64,
}

impl ArithmeticBound {
    /// Measures the bound. Returns `None` if these settings do not use the kernels.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn measure(settings: ComputeSettings) -> io::Result<Option<Self>> {
        let compute = Compute::resolve(settings);
        let Some(format) = compute.kernel_format() else { return Ok(None) };
        let mut context = KernelContext::try_new(compute.level, compute.threads)?;
        Ok(Some(Self {
            dtype: compute.placement.dtype.name(),
            level: compute.level.name(),
            operations_per_second: limits::operations_per_second(&mut context, format, PASS),
        }))
    }
}

/// Measures how many bytes per second the threads of these settings read from memory together.
///
/// # Errors
/// When the operating system cannot start the threads.
pub fn read_bytes_per_second(settings: ComputeSettings) -> io::Result<f64> {
    let compute = Compute::resolve(settings);
    let mut context = KernelContext::try_new(compute.level, compute.threads)?;
    Ok(limits::read_bandwidth(&mut context, BUFFER_BYTES))
}
