//! Benchmarks the models without HTTP and without a queue: runs one kind of work on one batch repeatedly. The command
//! `bench` (`cli::bench`) calls this module and prints the results.
//!
//! - this file: [`Bench`] loads models for one device, number format and instruction set, and measures them;
//! - `work`: the kinds of work, and which models support them;
//! - `inputs`: the input batches;
//! - `workload`: one run of one kind of work on one batch;
//! - `limits`: the measured upper bounds of the machine.

mod inputs;
mod limits;
mod work;
mod workload;

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::compute::{ChosenOps, Compute};
use super::loading::{self, Located};
use crate::config::{ComputeSettings, Config};
use crate::engine::EngineSettings;
use crate::engine::backend::Backend;
use crate::model::ops::Ops;
use crate::model::ops::timed::{Timed, Times, WorkKind};
use crate::model::{BlipBackend, ModelSpec, Placement};
use crate::task::{Dtype, ModelId, ModelInfo};
pub use limits::{ArithmeticBound, Machine, read_bytes_per_second};
pub use work::Work;
use workload::Workload;

/// The files of the models to measure. They are found once, then loaded once per number format and instruction set.
pub struct Checkpoints(Vec<Located>);

impl Checkpoints {
    /// Finds or downloads every configured model.
    ///
    /// # Errors
    /// When a model cannot be found or downloaded.
    pub async fn locate(config: &Config) -> anyhow::Result<Self> {
        Ok(Self(loading::locate(config).await?))
    }
}

/// How many times each kind of work runs, and how many tokens it generates.
#[derive(Debug, Clone, Copy)]
pub struct RunPlan {
    /// Number of timed runs per measurement.
    pub runs: NonZeroUsize,
    /// Number of untimed runs before the timed ones.
    pub warm_up: usize,
    /// Exact number of tokens to generate for a caption or an answer; up to this number, the stop token is not allowed.
    pub tokens: NonZeroUsize,
    /// Whether to add one run that records the time of each part.
    pub profile: bool,
}

impl RunPlan {
    /// Returns the number of all runs per measurement: untimed, timed and profiled.
    #[must_use]
    pub fn all_runs(&self) -> usize {
        self.warm_up + self.runs.get() + usize::from(self.profile)
    }
}

/// Times of one kind of work on one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Time in seconds that each timed run took for the whole batch.
    pub seconds: Vec<f64>,
    /// Parts of the profiled run: the operations, longest first, followed by the time between operations. Empty without
    /// profiling.
    pub parts: Vec<PartSeconds>,
}

/// Time that the profiled run spent in one kind of operation.
#[derive(Debug, Clone, PartialEq)]
pub struct PartSeconds {
    /// Name of the operation, or "between operations".
    pub part: String,
    /// Total time in seconds of all calls of the operation.
    pub seconds: f64,
    /// Number of calls in the run.
    pub calls: usize,
    /// Minimum work of all calls of the operation, if it is known.
    pub work: Option<PartWork>,
}

/// Minimum work of a matrix product. Arithmetic limits the speed of a product with many rows; reading the weights
/// limits the speed of a product with few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartWork {
    /// Number of multiplications and additions.
    Operations(usize),
    /// Number of bytes of weights to read; each call of the operation reads its weights once.
    Bytes(usize),
}

impl PartWork {
    fn of(part: WorkKind, calls: usize, dtype: Dtype) -> Option<Self> {
        let (values, rows) = match part {
            WorkKind::Linear { input, output, rows } => (input * output, rows),
            WorkKind::FeedForward { width, inner, rows } => (2 * width * inner, rows),
            WorkKind::SelfAttention
            | WorkKind::CrossAttention
            | WorkKind::CachedAttention
            | WorkKind::KeysAndValues
            | WorkKind::LayerNorm
            | WorkKind::PatchEmbedding
            | WorkKind::EmbedTokens
            | WorkKind::Copies => return None,
        };
        let value_bytes = match dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::Int8 => 1,
        };
        let weights = values * calls;
        Some(rows.map_or(Self::Bytes(weights * value_bytes), |rows| {
            Self::Operations(2 * weights * rows)
        }))
    }
}

/// Number format, instruction set and threads of a measurement, with every `auto` resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Number format of weights and activations, such as `bf16`.
    pub dtype: &'static str,
    /// Instruction set of the kernels, or, if the kernels are not used, `candle` or the name of the GPU.
    pub level: String,
    /// Number of threads that run the models.
    pub threads: usize,
}

/// Models loaded for one setup, ready to be measured.
pub struct Bench {
    models: Box<dyn Models>,
    setup: Setup,
}

impl Bench {
    /// Loads the models for these settings.
    ///
    /// # Errors
    /// When a model cannot be loaded or the device cannot be opened.
    pub fn load(settings: ComputeSettings, checkpoints: &Checkpoints) -> anyhow::Result<Self> {
        let compute = Compute::resolve(settings);
        ensure!(
            compute.for_further_gpus(settings).is_empty(),
            "bench measures one device: name one GPU"
        );
        let specs = checkpoints.0.iter().map(|located| located.spec.clone()).collect::<Vec<_>>();
        let placement = compute.placement;
        let kv_bytes = EngineSettings::default().max_kv_bytes;
        let (models, level) = match compute.ops(kv_bytes).context("cannot open the device")? {
            ChosenOps::Kernels(ops) => {
                (load(ops, &specs, placement)?, compute.level.name().to_owned())
            }
            ChosenOps::Candle(ops) => (load(ops, &specs, placement)?, "candle".to_owned()),
            ChosenOps::Gpu(ops) => (load(ops, &specs, placement)?, placement.device.to_string()),
        };
        let setup = Setup { dtype: placement.dtype.name(), level, threads: compute.threads };
        Ok(Self { models, setup })
    }

    /// Returns the resolved number format, instruction set and threads of these models.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Pairs each of `works` (all kinds if empty) with every model that supports it. If models share a vision tower,
    /// the work on the tower alone is listed only for the first of these models.
    ///
    /// # Errors
    /// When no model supports one of `works`.
    pub fn cases(&self, works: &[Work]) -> anyhow::Result<Vec<(ModelInfo, Work)>> {
        let infos = self.models.infos();
        for work in works {
            ensure!(
                infos.iter().any(|info| work.is_done_by(info.class)),
                "no model supports {work}; the models support: {}",
                Work::names(
                    Work::ALL
                        .iter()
                        .filter(|work| infos.iter().any(|info| work.is_done_by(info.class)))
                )
            );
        }
        let works = if works.is_empty() { &Work::ALL } else { works };
        let has_own_tower = |info: &ModelInfo| {
            infos.iter().find(|other| other.tower() == info.tower()) == Some(info)
        };
        let of_model = |info: &ModelInfo| -> Vec<(ModelInfo, Work)> {
            let done = works.iter().filter(|work| work.is_done_by(info.class));
            done.filter(|work| **work != Work::Vision || has_own_tower(info))
                .map(|work| (info.clone(), *work))
                .collect()
        };
        Ok(infos.iter().flat_map(of_model).collect())
    }

    /// Measures one kind of work with one model on a batch of `batch` items. Calls `on_run` after each run.
    ///
    /// # Errors
    /// When the model cannot generate as many tokens as `plan` requests, or the device fails.
    pub fn measure(
        &mut self,
        (info, work): &(ModelInfo, Work),
        batch: NonZeroUsize,
        plan: &RunPlan,
        on_run: &mut dyn FnMut(),
    ) -> anyhow::Result<Measurement> {
        let vocabulary = self.models.vocabulary(info.id);
        let workload = Workload::new(info, *work, batch.get(), plan.tokens.get(), vocabulary)?;
        let mut run = |profile| {
            let run = self.models.run(&workload, profile);
            on_run();
            run.with_context(|| format!("{work} of model {} failed", info.name))
        };
        for _ in 0..plan.warm_up {
            run(false)?;
        }
        let timed = (0..plan.runs.get()).map(|_| Ok(run(false)?.seconds));
        let seconds = timed.collect::<anyhow::Result<_>>()?;
        let parts = if plan.profile { run(true)?.parts } else { Vec::new() };
        Ok(Measurement { seconds, parts })
    }
}

/// Times of one run of a workload; `parts` is empty without profiling.
struct RunTimes {
    seconds: f64,
    parts: Vec<PartSeconds>,
}

/// Loaded models, with the type of their operations erased.
trait Models {
    fn infos(&self) -> &[ModelInfo];
    /// Returns the number of rows of the model's embedding table; 0 if it has none.
    fn vocabulary(&self, model: ModelId) -> usize;
    fn run(&mut self, workload: &Workload, profile: bool) -> anyhow::Result<RunTimes>;
}

struct Loaded<O: Ops> {
    backend: BlipBackend<Timed<O>>,
    times: Arc<Times>,
}

fn load<O: Ops + 'static>(
    ops: O,
    specs: &[ModelSpec],
    placement: Placement,
) -> anyhow::Result<Box<dyn Models>> {
    let ops = Timed::new(ops);
    let times = ops.times();
    let backend =
        BlipBackend::load(ops, specs, placement, |_| {}).context("cannot load the models")?;
    Ok(Box::new(Loaded { backend, times }))
}

impl<O: Ops> Models for Loaded<O> {
    fn infos(&self) -> &[ModelInfo] {
        self.backend.models()
    }

    fn vocabulary(&self, model: ModelId) -> usize {
        self.backend.vocabulary(model).map_or(0, |vocabulary| vocabulary.size)
    }

    fn run(&mut self, workload: &Workload, profile: bool) -> anyhow::Result<RunTimes> {
        let known = workload.prepare(&mut self.backend)?;
        if profile {
            self.times.start();
        }
        let seconds = workload.run(&mut self.backend, known)?.as_secs_f64();
        let spent = self.times.stop();
        let mut parts: Vec<PartSeconds> = spent
            .into_iter()
            .map(|(part, spent)| PartSeconds {
                part: part.to_string(),
                seconds: spent.time.as_secs_f64(),
                calls: spent.calls,
                work: PartWork::of(part, spent.calls, self.backend.models()[0].dtype),
            })
            .collect();
        if profile {
            let inside: f64 = parts.iter().map(|part| part.seconds).sum();
            let seconds = (seconds - inside).max(0.0);
            parts.push(PartSeconds { part: OUTSIDE.to_owned(), seconds, calls: 0, work: None });
        }
        Ok(RunTimes { seconds, parts })
    }
}

/// Name of the part for all time that is spent outside the operations: on search, lists and allocation.
const OUTSIDE: &str = "between operations";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_bound_by_arithmetic_and_few_by_the_weights() {
        let linear = |rows| WorkKind::Linear { input: 768, output: 3072, rows };
        let of = |part, dtype| PartWork::of(part, 12, dtype);
        let operations = 2 * 577 * 768 * 3072 * 12;
        assert_eq!(of(linear(Some(577)), Dtype::Int8), Some(PartWork::Operations(operations)));
        assert_eq!(of(linear(None), Dtype::Bf16), Some(PartWork::Bytes(768 * 3072 * 12 * 2)));
        let block = WorkKind::FeedForward { width: 768, inner: 3072, rows: Some(577) };
        assert_eq!(of(block, Dtype::Bf16), Some(PartWork::Operations(2 * operations)));
        assert_eq!(of(WorkKind::LayerNorm, Dtype::F32), None);
    }
}
