//! The machine, and what it could do at most: what measured times are held against.

use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::app::compute::Compute;
use crate::config::ComputeSettings;
use crate::kernels::isa::Level;
use crate::kernels::limits;
use crate::kernels::pool::Pool;

/// Many times what caches hold. A shared last level of 260 MB, as recent servers have, still flatters this a little.
const BUFFER_BYTES: usize = 250_000_000;

/// A pass of products: long beside the time that a thread needs to wake, short for a person.
const PASS: Duration = Duration::from_millis(20);

/// What measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The processor's name, or its architecture where the system has none.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernels' levels that it has, from least to most.
    pub levels: Vec<&'static str>,
}

impl Machine {
    /// This one.
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

/// What one setup could do.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The number format.
    pub dtype: &'static str,
    /// The kernels' level.
    pub level: &'static str,
    /// Multiplications and additions a second, all threads together.
    pub operations_per_second: f64,
}

impl Limits {
    /// Measures; `None` where the kernels do not compute.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn measure(settings: ComputeSettings) -> io::Result<Option<Self>> {
        let compute = Compute::resolve(settings);
        let Some(format) = compute.kernel_format() else { return Ok(None) };
        let mut pool = Pool::try_new(compute.threads)?;
        Ok(Some(Self {
            dtype: compute.placement.dtype.name(),
            level: compute.level.name(),
            operations_per_second: limits::operations_per_second(
                compute.level,
                format,
                &mut pool,
                PASS,
            ),
        }))
    }
}

/// Bytes a second that the threads of these settings read from memory together.
///
/// # Errors
/// When the operating system gives no more threads.
pub fn read_bytes_per_second(settings: ComputeSettings) -> io::Result<f64> {
    let mut pool = Pool::try_new(Compute::resolve(settings).threads)?;
    Ok(limits::read_bandwidth(&mut pool, BUFFER_BYTES))
}
