//! Tests parity with transformers: compares the outputs of every tower, head and search on the tiny checkpoints in
//! `tests/fixtures` with outputs recorded from transformers. These tests are here and not in `tests/it` because hidden
//! states are private to this module.

#![expect(clippy::wildcard_enum_match_arm, reason = "the panic prints the unexpected variant")]
#![expect(
    clippy::duplicate_mod,
    reason = "the same tests run over every implementation of the operations"
)]

/// Defines the parity tests for one implementation of the operations. Each implementation has its own file, so that the
/// `#[path]` attributes resolve.
///
/// `$make` creates the operations, or returns `None` if this machine cannot run them; it then prints why. Of the cases of
/// generation, every `$step`-th runs: 1 for all of them.
macro_rules! suite {
    ($ops:ty, $make:expr) => {
        suite!($ops, $make, 1);
    };
    ($ops:ty, $make:expr, $step:expr) => {
        #[path = "altered.rs"]
        mod altered;
        #[path = "explanations.rs"]
        mod explanations;
        #[path = "generation.rs"]
        mod generation;
        #[path = "invariance.rs"]
        mod invariance;
        #[path = "scores.rs"]
        mod scores;
        #[path = "towers.rs"]
        mod towers;

        use super::*;

        type TestedOps = $ops;
        type Tested = BlipBackend<TestedOps>;

        fn make() -> TestedOps {
            $make.expect("tests that are skipped make no operations")
        }

        fn case_step() -> usize {
            $step
        }

        /// True if the operations cannot run on this machine. Every test asks this first.
        fn skipped() -> bool {
            $make.is_none()
        }

        fn load(checkpoints: &[&str]) -> Tested {
            let specs: Vec<ModelSpec> = checkpoints.iter().map(|name| spec(name)).collect();
            BlipBackend::load(make(), &specs, CPU_F32, |_| {}).unwrap()
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod candle;
mod cuda;
mod errors;
mod gpu;
mod gpu_faults;
mod gpu_ops;
mod portable;
mod precision;
mod resolutions;
mod sharing;
mod timed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device as CandleDevice, Tensor};
use serde_json::Value;

use super::backend::{BlipBackend, ModelSpec, Placement};
use super::load::{ModelFiles, WeightFiles};
use super::ops::candle::CandleOps;
use super::ops::cpu::CpuOps;
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::task::{Device, Dtype, Pixels, TokenIds};

/// Returns our kernels at `level`, on two threads. If this CPU does not support the level, uses the CPU's highest level
/// instead and prints a message.
pub(super) fn kernels(level: Level, format: Format) -> CpuOps {
    let available = if level.is_available() { level } else { Level::detect() };
    if available != level {
        eprintln!("skipped: this CPU has no {level}, {available} runs instead");
    }
    CpuOps::try_new(available, format, 2).unwrap()
}

/// Maximum accepted difference, relative to the largest magnitude. The differences of deliberately wrong runs are at
/// least ten times as large (`wrong_runs` in the JSON files of the reference).
pub(super) const TOLERANCE: f32 = 1e-4;

/// All checkpoints, in the order of the fixtures' README.
pub(super) const CHECKPOINTS: [&str; 6] =
    ["caption-varied", "caption-talkative", "vqa-varied", "vqa-talkative", "retrieval", "base"];

pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Returns the model files in a fixture directory. Outside the tests, `hub` finds the files.
pub(super) fn files(directory: &Path) -> ModelFiles {
    let existing = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
    let preprocessor =
        existing("preprocessor_config.json").or_else(|| existing("processor_config.json"));
    let weights = if let Some(path) = existing("model.safetensors") {
        WeightFiles::Safetensors(vec![path.into()])
    } else if let Some(index) = existing("model.safetensors.index.json") {
        let index: Value = serde_json::from_str(&std::fs::read_to_string(index).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        let mut shards: Vec<&str> = map.values().map(|shard| shard.as_str().unwrap()).collect();
        shards.sort_unstable();
        shards.dedup();
        WeightFiles::Safetensors(shards.iter().map(|shard| directory.join(shard).into()).collect())
    } else {
        WeightFiles::Pickle(vec![directory.join("pytorch_model.bin")])
    };
    ModelFiles {
        config: directory.join("config.json").into(),
        preprocessor: preprocessor.map(Into::into),
        weights,
    }
}

pub(super) fn spec(checkpoint: &str) -> ModelSpec {
    ModelSpec {
        name: checkpoint.to_owned(),
        source: checkpoint.to_owned(),
        revision: None,
        demo: false,
        files: files(&fixtures().join(checkpoint)),
        image_size: None,
    }
}

pub(super) const CPU_F32: Placement = Placement { device: Device::Cpu, dtype: Dtype::F32 };

/// The contents of `reference/{name}.json` and `reference/{name}.safetensors`.
pub(super) struct Reference {
    pub(super) json: Value,
    tensors: HashMap<String, Tensor>,
}

impl Reference {
    pub(super) fn read(name: &str) -> Self {
        let stem = fixtures().join("reference").join(name);
        let text = std::fs::read_to_string(stem.with_extension("json")).unwrap();
        let tensors = stem.with_extension("safetensors");
        let tensors = candle_core::safetensors::load(tensors, &CandleDevice::Cpu).unwrap();
        Self { json: serde_json::from_str(&text).unwrap(), tensors }
    }

    pub(super) fn tensor(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.get(name).unwrap_or_else(|| panic!("no reference tensor {name}"));
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Returns all tensor names that start with `prefix.`, without this prefix, in alphabetical order.
    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned))
            .collect();
        names.sort_unstable();
        names
    }

    pub(super) fn list(&self, key: &str) -> &[Value] {
        self.json[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
    }

    pub(super) fn pixels(&self, photo: &str) -> Pixels {
        let side = self.json["image_size"].as_u64().unwrap();
        let path = fixtures().join("reference/pixels.safetensors");
        let tensors = candle_core::safetensors::load(path, &CandleDevice::Cpu).unwrap();
        let bytes = tensors[&format!("{photo}.{side}")].flatten_all().unwrap().to_vec1::<u8>();
        Pixels::new(side as u32, side as u32, bytes.unwrap())
    }
}

pub(super) fn ids(value: &Value) -> Vec<u32> {
    let values = value.as_array().unwrap_or_else(|| panic!("not a list of ids: {value}"));
    values.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(super) fn floats(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap_or_else(|| panic!("not a list of numbers: {value}"));
    values.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

pub(super) fn tokens(value: &Value) -> TokenIds {
    TokenIds::new(ids(value))
}

/// Returns the largest difference, relative to the largest expected magnitude.
pub(super) fn distance(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len(), "numbers of values differ");
    let difference = |(a, b): (&f32, &f32)| (a - b).abs();
    let largest = actual.iter().zip(expected).map(difference).fold(0.0, f32::max);
    let magnitude = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
    assert!(actual.iter().all(|value| value.is_finite()), "values are not finite");
    largest / magnitude.max(f32::MIN_POSITIVE)
}

#[track_caller]
pub(super) fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    let distance = distance(actual, expected);
    assert!(distance <= tolerance, "{what}: {distance:e} is above {tolerance:e}");
}
