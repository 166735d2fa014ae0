//! Memory budget: compares the amount of memory that the settings allow the process to use with its memory limit.
//! `loading` logs the budget at startup, and refuses to start if the budget exceeds the limit of the container.
//!
//! Every buffer has its own bound; the budget is the sum of these bounds, not a forecast. It does not include the
//! activations of a running work unit (some 100 MB for a base model on a CPU).

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

/// The largest size of each bounded buffer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryBudget {
    /// Weights of all models in the dtype that they run in.
    pub(super) weights: u64,
    /// Request bodies and prepared pixels of admitted requests (`engine.capacity_bytes` with its reserve).
    pub(super) bodies: u64,
    /// Lines and answers of bulk requests.
    pub(super) bulk: u64,
    /// Image files fetched by URL and not decoded yet.
    pub(super) fetched: u64,
    /// Buffers of the images being decoded.
    pub(super) decoding: u64,
    /// Cache of prepared pixels, keyed by image id.
    pub(super) pixels: u64,
    /// Cache of encoded images (image features).
    pub(super) features: u64,
    /// KV cache of the text rows being decoded.
    pub(super) kv: u64,
}

impl MemoryBudget {
    /// Returns the sum of all parts, in bytes.
    #[must_use]
    pub(super) fn total(&self) -> u64 {
        let Self { weights, bodies, bulk, fetched, decoding, pixels, features, kv } = *self;
        weights + bodies + bulk + fetched + decoding + pixels + features + kv
    }

    /// Rejects a budget above a cgroup limit. The machine's memory is not a hard limit, so it is not checked.
    ///
    /// # Errors
    /// A message that names the parts, the limit and the settings to lower.
    pub(super) fn check(&self, limit: Option<MemoryLimit>) -> Result<(), String> {
        match limit {
            Some(MemoryLimit::Cgroup(bytes)) if self.total() > bytes => Err(format!(
                "the settings allow up to {self}, but the container's memory limit is {}: raise the limit, or lower \
                 engine.capacity_bytes (counted for each worker), engine.max_kv_bytes, engine.feature_cache_bytes, \
                 images.decode_budget_bytes, images.pixel_cache_bytes, bulk.max_requests or fetch.max_concurrent",
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
            "{} (weights {}, bodies {}, bulk requests {}, fetched files {}, decoding {}, pixel cache {}, feature cache {}, KV cache {})",
            mebibytes(self.total()),
            mebibytes(self.weights),
            mebibytes(self.bodies),
            mebibytes(self.bulk),
            mebibytes(self.fetched),
            mebibytes(self.decoding),
            mebibytes(self.pixels),
            mebibytes(self.features),
            mebibytes(self.kv),
        )
    }
}

/// The memory limit of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// Limit of the cgroup. If the process exceeds it, the kernel kills the process.
    Cgroup(u64),
    /// Memory of the machine, shared with all other processes.
    Machine(u64),
}

impl MemoryLimit {
    /// Reads the limit of this process: the lowest limit of its cgroup and of those above it, else the memory of the
    /// machine; `None` if neither can be read.
    #[must_use]
    pub(super) fn detect() -> Option<Self> {
        let machine = read(Path::new("/proc/meminfo")).and_then(|text| parse_meminfo(&text));
        let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let limit = |file: PathBuf| read(&file)?.trim().parse::<u64>().ok();
        let cgroup = limit_files(&groups).into_iter().filter_map(limit).min();
        // cgroup v1 reports "no limit" as a number near 2^63. A limit above the memory of the machine has no effect, so
        // it is ignored.
        let cgroup = cgroup.filter(|&limit| machine.is_none_or(|machine| limit < machine));
        cgroup.map(Self::Cgroup).or(machine.map(Self::Machine))
    }
}

/// Returns the default high-water mark of resident memory, above which images are rejected. It is nine tenths of the
/// memory limit.
pub(super) fn high_water_bytes() -> Option<NonZeroU64> {
    let (MemoryLimit::Cgroup(bytes) | MemoryLimit::Machine(bytes)) = MemoryLimit::detect()?;
    NonZeroU64::new(bytes / 10 * 9)
}

/// Returns the files that may hold a memory limit of this process, given the content of `/proc/self/cgroup`: those of its
/// cgroup and of all cgroups above it, v2 and v1. In a container its own cgroup is the root, `/`. In a service of systemd
/// it is something like `/system.slice/blip-server.service`, and the root has no limit.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    const V2: (&str, &str) = ("/sys/fs/cgroup", "memory.max");
    const V1: (&str, &str) = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes");
    // The roots also if the content cannot be read.
    let mut files = [V2, V1].map(|(root, file)| Path::new(root).join(file)).to_vec();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            V2
        } else if controllers.split(',').any(|name| name == "memory") {
            V1
        } else {
            continue;
        };
        // A cgroup outside the namespace of this process is written with `..`; its files cannot be seen here.
        let path = Path::new(path.trim_start_matches('/'));
        if path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            let above = path.ancestors().filter(|part| !part.as_os_str().is_empty());
            files.extend(above.map(|part| Path::new(root).join(part).join(file)));
        }
    }
    files
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Finds the line `MemTotal:       24689764 kB` and returns its value in bytes.
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
        bulk: 390 << 20,
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
            error.contains("5578 MiB (weights 900 MiB, bodies 512 MiB, bulk requests 390 MiB, fetched files 320 MiB"),
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
    fn limits_are_read_of_the_own_cgroup_and_of_all_above_it() {
        let files = |groups: &str| -> Vec<String> {
            limit_files(groups).iter().map(|file| file.display().to_string()).collect()
        };
        let roots = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        for in_a_container in ["", "0::/\n", "0::/../../other\n", "nonsense\n", "3:cpu:/x\n"] {
            assert_eq!(files(in_a_container), roots, "{in_a_container:?}");
        }
        let service = "/sys/fs/cgroup/system.slice/blip-server.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        let expected = [roots[0], roots[1], service, slice];
        assert_eq!(files("0::/system.slice/blip-server.service\n"), expected);
        let v1 = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        assert_eq!(files("9:cpu,memory:/a\n0::/\n"), [roots[0], roots[1], v1]);
    }

    #[test]
    fn the_machines_memory_is_read_in_kibibytes() {
        assert_eq!(parse_meminfo("MemTotal:       1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
    }
}
