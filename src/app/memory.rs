//! What the process may come to need, against what it may have: logged at start, refused above the limit.
//!
//! Every buffer has a bound of its own; this is their sum: what the settings allow, not a forecast. What a unit of
//! work needs while it runs (activations: some 100 MB for a base model on a CPU) comes on top.

use std::fmt;
use std::path::Path;

/// Bytes that each bounded buffer may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryBudget {
    /// Weights of all models in the dtype that they run in.
    pub(super) weights: u64,
    /// Bodies of admitted requests.
    pub(super) bodies: u64,
    /// Files that were fetched by URL and are not decoded yet.
    pub(super) fetched: u64,
    /// Pictures being decoded.
    pub(super) decoding: u64,
    /// The cache of prepared pixels.
    pub(super) pixels: u64,
    /// The cache of encoded images.
    pub(super) features: u64,
    /// Keys and values of decoding rows.
    pub(super) kv: u64,
}

impl MemoryBudget {
    /// The sum.
    #[must_use]
    pub(super) fn total(&self) -> u64 {
        let Self { weights, bodies, fetched, decoding, pixels, features, kv } = *self;
        weights + bodies + fetched + decoding + pixels + features + kv
    }

    /// Refuses a budget above `limit`.
    ///
    /// # Errors
    /// A text that names the parts and the limit, and what to lower.
    pub(super) fn check(&self, limit: Option<MemoryLimit>) -> Result<(), String> {
        match limit {
            Some(MemoryLimit::Cgroup(bytes)) if self.total() > bytes => Err(format!(
                "the settings allow {self}, the container's memory limit is {}: raise the limit, or lower \
                 engine.capacity_bytes, engine.max_kv_bytes, engine.feature_cache_bytes, \
                 images.decode_budget_bytes, images.pixel_cache_bytes or fetch.max_concurrent",
                mebibytes(bytes)
            )),
            Some(MemoryLimit::Cgroup(_) | MemoryLimit::Machine(_)) | None => Ok(()),
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (weights {}, bodies {}, fetched files {}, decoding {}, pixel cache {}, feature cache {}, keys and values {})",
            mebibytes(self.total()),
            mebibytes(self.weights),
            mebibytes(self.bodies),
            mebibytes(self.fetched),
            mebibytes(self.decoding),
            mebibytes(self.pixels),
            mebibytes(self.features),
            mebibytes(self.kv),
        )
    }
}

/// What the process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// A control group's limit: above it the process is killed.
    Cgroup(u64),
    /// The machine's memory, shared with everything else on it.
    Machine(u64),
}

impl MemoryLimit {
    /// The limit of this process: its control group's (v2, then v1), else the machine's memory; none where neither
    /// can be read.
    #[must_use]
    pub(super) fn detect() -> Option<Self> {
        let machine = read(Path::new("/proc/meminfo")).and_then(|text| parse_meminfo(&text));
        let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let cgroup =
            files.iter().find_map(|file| read(Path::new(file))?.trim().parse::<u64>().ok());
        // v1 says "no limit" by a number near 2^63; a limit above the machine's memory limits nothing.
        let cgroup = cgroup.filter(|&limit| machine.is_none_or(|machine| limit < machine));
        cgroup.map(Self::Cgroup).or(machine.map(Self::Machine))
    }
}

/// Where pictures are refused by default: nine tenths of what the process may have.
pub(super) fn high_water_bytes() -> Option<u64> {
    let (MemoryLimit::Cgroup(bytes) | MemoryLimit::Machine(bytes)) = MemoryLimit::detect()?;
    Some(bytes / 10 * 9)
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `MemTotal:       24689764 kB`.
fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: MemoryBudget = MemoryBudget {
        weights: 900 << 20,
        bodies: 512 << 20,
        fetched: 320 << 20,
        decoding: 1 << 30,
        pixels: 128 << 20,
        features: 256 << 20,
        kv: 2 << 30,
    };

    #[test]
    fn a_budget_above_the_containers_limit_is_refused_with_its_parts() {
        let error = BUDGET.check(Some(MemoryLimit::Cgroup(1 << 30))).unwrap_err();
        assert!(
            error.contains("5188 MiB (weights 900 MiB, bodies 512 MiB, fetched files 320 MiB"),
            "{error}"
        );
        assert!(error.contains("limit is 1024 MiB"), "{error}");
    }

    #[test]
    fn a_budget_below_the_limit_or_without_one_is_accepted() {
        assert_eq!(BUDGET.check(Some(MemoryLimit::Cgroup(8 << 30))), Ok(()));
        assert_eq!(BUDGET.check(Some(MemoryLimit::Machine(1 << 30))), Ok(()));
        assert_eq!(BUDGET.check(None), Ok(()));
    }

    #[test]
    fn the_machines_memory_is_read_in_kibibytes() {
        assert_eq!(parse_meminfo("MemTotal:       1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
    }
}
