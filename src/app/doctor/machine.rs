//! [`Machine`]: what the checks need to know about the machine, read once. The checks themselves read nothing, so tests
//! can invent machines.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::iter;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use super::certificate::Certificate;
use crate::app::memory_budget::MemoryLimit;
use crate::config::{Config, DeviceChoice, DtypeChoice, Gpus};
use crate::gpu::cuda::{self, CudaUnavailable};
use crate::kernels::isa::Level;

/// The machine as this process sees it.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) memory: Option<MemoryLimit>,
    /// Number of CPUs that the quota of the cgroup and the affinity allow.
    pub(super) usable_cpus: usize,
    /// Number of physical cores to which the affinity restricts this process; `None` if the system does not say.
    pub(super) cores: Option<usize>,
    /// Hard limit of file descriptors; `None` is unlimited.
    pub(super) max_descriptors: Option<u64>,
    /// The best instruction set of this CPU.
    pub(super) level: Level,
    /// True if the CPU has further instructions that the operating system does not let this process use.
    pub(super) is_level_refused: bool,
    /// Whether every CPU of this architecture has all instructions that the kernels can use.
    pub(super) is_portable_best: bool,
    /// The GPU that the settings choose, or why it cannot be used; `None` if they choose no GPU.
    pub(super) gpus: Option<Result<Gpus, CudaUnavailable>>,
    /// The addresses to listen on, by setting, and why they cannot be used.
    pub(super) addresses: Vec<(&'static str, SocketAddr, Result<(), ErrorKind>)>,
    /// Files that hold secrets, by setting, with their permission bits.
    pub(super) secrets: Vec<(&'static str, PathBuf, u32)>,
    pub(super) certificate: Certificate,
    /// Seconds since 1970.
    pub(super) now: i64,
    /// True if this process runs in a pod of Kubernetes.
    pub(super) is_kubernetes: bool,
}

impl Machine {
    /// Reads the machine. Opens each configured port for a moment.
    pub(super) fn inspect(config: &Config, is_kubernetes: bool) -> Self {
        Self {
            memory: MemoryLimit::detect(),
            usable_cpus: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            cores: physical_cores(),
            max_descriptors: getrlimit(Resource::Nofile).maximum,
            level: Level::detect(),
            is_level_refused: Level::ALL.into_iter().any(Level::is_refused),
            is_portable_best: Level::ALL.len() == 1,
            gpus: gpus(config),
            addresses: addresses(config),
            secrets: secrets(config),
            certificate: certificate(config),
            now: unix_seconds(),
            is_kubernetes,
        }
    }

    /// A machine on which the default settings have no fault.
    #[cfg(test)]
    pub(super) fn healthy() -> Self {
        Self {
            memory: Some(MemoryLimit::Cgroup(64 << 30)),
            usable_cpus: 8,
            cores: Some(8),
            max_descriptors: Some(65_536),
            level: Level::Portable,
            is_level_refused: false,
            is_portable_best: true,
            gpus: Some(Err(CudaUnavailable::DriverMissing)),
            addresses: vec![("server.listen", ([127, 0, 0, 1], 8080).into(), Ok(()))],
            secrets: Vec::new(),
            certificate: Certificate::Absent,
            now: 0,
            is_kubernetes: false,
        }
    }
}

/// Returns the GPUs that would be used, or why the first of them that is unusable cannot be used; `None` for a CPU.
fn gpus(config: &Config) -> Option<Result<Gpus, CudaUnavailable>> {
    match config.compute.device {
        DeviceChoice::Cpu => None,
        // As in `Compute::resolve`: only CPUs compute in int8.
        DeviceChoice::Auto if config.compute.dtype == DtypeChoice::Int8 => None,
        DeviceChoice::Auto => {
            let first = |ordinals: Vec<usize>| ordinals.first().copied().and_then(Gpus::one);
            cuda::usable().map(first).transpose()
        }
        DeviceChoice::Cuda(gpus) => {
            let mut ordinals = iter::once(gpus.first()).chain(gpus.others());
            let checked = ordinals.try_for_each(|ordinal| cuda::check_usable(ordinal).map(drop));
            Some(checked.map(|()| gpus))
        }
    }
}

fn addresses(config: &Config) -> Vec<(&'static str, SocketAddr, Result<(), ErrorKind>)> {
    let operations = config.operations_listen.map(|address| ("server.operations_listen", address));
    [("server.listen", config.listen)]
        .into_iter()
        .chain(operations)
        .map(|(setting, address)| {
            let bound = TcpListener::bind(address).map(drop).map_err(|error| error.kind());
            (setting, address, bound)
        })
        .collect()
}

fn secrets(config: &Config) -> Vec<(&'static str, PathBuf, u32)> {
    let keys = config.http.auth.as_ref().and_then(|auth| auth.keys_file.as_ref());
    let keys = keys.map(|file| ("auth.keys_file", file.path.clone()));
    let tls = config.http.tls.as_ref().map(|tls| ("server.tls_key", tls.key.clone()));
    let mode = |path: &Path| std::fs::metadata(path).ok().map(|file| file.permissions().mode());
    keys.into_iter()
        .chain(tls)
        .filter_map(|(setting, path)| mode(&path).map(|mode| (setting, path, mode)))
        .collect()
}

fn certificate(config: &Config) -> Certificate {
    let Some(tls) = &config.http.tls else { return Certificate::Absent };
    let pem = std::fs::read(&tls.certificate);
    pem.map_or(Certificate::Unreadable, |pem| Certificate::of_pem(&pem))
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}

/// Counts the physical cores of the CPUs that this process may run on. Two hyperthreads share a core.
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let core = |cpu: usize| {
        let read = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}");
            std::fs::read_to_string(path).ok()
        };
        Some((read("physical_package_id")?, read("core_id")?))
    };
    let cores: Option<BTreeSet<_>> = cpu_list(line.trim())?.into_iter().map(core).collect();
    cores.map(|cores| cores.len())
}

/// Parses a list of CPUs such as `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_numbers_and_ranges() {
        assert_eq!(cpu_list("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cpu_list("5"), Some(vec![5]));
        assert_eq!(cpu_list("a-b"), None);
    }
}
