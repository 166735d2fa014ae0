//! Memory budget: compares the amount of memory that the settings allow the process to use with its memory limit.
//! `loading` logs the budget at startup, and refuses to start if the budget exceeds the limit of the container.
//!
//! Every buffer has its own bound; the budget is the sum of these bounds, not a forecast. It does not include the
//! activations of a running work unit (some 100 MB for a base model on a CPU).

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Config;
use crate::fairness;
use crate::model::load::CheckpointWeights;
use crate::model::{ModelSpec, Placement};
use crate::task::{Device, Dtype};

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
    /// Returns what the settings allow in the memory of the host. On a GPU, features and KV caches are in the memory of
    /// the device. Each worker admits requests of its own.
    pub(super) fn of(config: &Config, share: HostShare, weights: u64) -> Self {
        let on_host = |bytes: u64| match share.device {
            Device::Cpu => bytes,
            Device::Cuda(_) => 0,
        };
        Self {
            weights,
            // Includes the reserve, a quarter on top of the capacity, for clients that currently use little memory. The
            // KV cache has the same reserve.
            bodies: fairness::with_reserve(config.engine.capacity_bytes) * share.workers,
            bulk: config.http.bulk.most_bytes(),
            fetched: config.fetch.most_bytes(config.http.input.max_image_bytes),
            decoding: config.images.decode_budget_bytes,
            pixels: config.images.pixel_cache_bytes,
            // If there is a feature cache, pinned features are part of it, so the larger of the two limits bounds both.
            features: on_host(
                config.engine.feature_cache_bytes.max(config.engine.max_pinned_feature_bytes),
            ),
            kv: on_host(fairness::with_reserve(config.engine.max_kv_bytes)),
        }
    }

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

/// What decides which buffers are in the memory of the host, and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostShare {
    /// The device of the first worker. The others are on devices of the same kind.
    pub(super) device: Device,
    /// Number of workers, at least 1.
    pub(super) workers: u64,
}

/// Estimates the size of the weights in host memory, in bytes. Models from the same files share their weights, so they
/// are counted once. A tower that models from different files share is counted once for each of them.
pub(super) fn weight_bytes(specs: &[ModelSpec], placement: Placement) -> anyhow::Result<u64> {
    // Hundredths of a byte per parameter. With the kernels, embedding tables stay f32, a language model head that is
    // tied to its embedding table is stored a second time, and with int8 some layers are bf16. A base caption model
    // (224 M parameters) took 1.1 GB in f32, 560 MB in bf16 and 330 MB in int8.
    let hundredths = match (placement.device, placement.dtype) {
        (Device::Cuda(_), _) => 0,
        (Device::Cpu, Dtype::F32) => 500,
        (Device::Cpu, Dtype::Bf16) => 255,
        (Device::Cpu, Dtype::F16) => 200,
        (Device::Cpu, Dtype::Int8) => 150,
    };
    let mut parameters = 0;
    for (index, spec) in specs.iter().enumerate() {
        if specs[..index].iter().any(|other| other.files == spec.files) {
            continue;
        }
        let weights = CheckpointWeights::open(&spec.files.weights)
            .with_context(|| format!("cannot load model {}", spec.name))?;
        parameters += weights.parameter_count();
    }
    Ok(parameters * hundredths / 100)
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
    use crate::config::{Environment, Flags, load};

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

    const CPU: HostShare = HostShare { device: Device::Cpu, workers: 1 };

    /// The server refuses to start in a container whose limit is below what its settings allow.
    #[test]
    fn the_containers_of_the_repository_have_the_memory_that_their_settings_allow() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let flags = Flags { config: Some(root.join("config/docker.toml")), ..Flags::default() };
        let config = load(&flags, &Environment::default()).unwrap();
        // 3.5 GB of weights of three base models in f32.
        let on_cpu = |weights| MemoryBudget::of(&config, CPU, weights);
        let (demo, official) = (on_cpu(64 << 20), on_cpu(3_500_000_000));
        let on_gpu =
            MemoryBudget::of(&config, HostShare { device: Device::Cuda(0), workers: 1 }, 0);
        for (file, before, unit, needed) in [
            ("docker-compose.yml", "      - demo", "g\n", demo),
            ("docker-compose.yml", "      - official", "g\n", official),
            ("docker-compose.yml", "      - cuda", "g\n", on_gpu),
            ("deploy/kubernetes/demo/server.yaml", "limits:", "Gi }", demo),
            ("deploy/kubernetes/official/server.yaml", "limits:", "Gi }", official),
            ("deploy/kubernetes/cuda/server.yaml", "limits:", "Gi,", on_gpu),
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let (_, rest) = text.split_once(before).expect(before);
            let end = rest.find(unit).expect(unit);
            let digits = rest[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
            let gibibytes: u64 = rest[digits..end].parse().expect("a number of GiB");
            let limit = MemoryLimit::Cgroup(gibibytes << 30);
            assert_eq!(needed.check(Some(limit)), Ok(()), "{file}, {before}");
        }
    }

    #[test]
    fn fetched_files_count_where_fetching_is_on() {
        let fetched = |enabled: &str| {
            let variables = [
                ("BLIP__FETCH__ENABLED", enabled),
                ("BLIP__FETCH__MAX_CONCURRENT", "3"),
                ("BLIP__INPUT__MAX_IMAGE_BYTES", "1000000"),
            ];
            let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            let environment: Environment = variables.into_iter().map(own).collect();
            let config = load(&Flags::default(), &environment).unwrap();
            MemoryBudget::of(&config, CPU, 0).fetched
        };
        assert_eq!([fetched("false"), fetched("true")], [0, 3_000_000]);
    }
}
