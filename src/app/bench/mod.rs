//! The models without HTTP and without a queue: one kind of work on one batch, run again and again. What the command
//! `bench` measures with.
//!
//! - this file: models loaded for one device, number format and level, and what is measured on them;
//! - `work`: the kinds of work, and which models do them;
//! - `inputs`: the batches that they run on;
//! - `job`: one run;
//! - `limits`: what the machine could do at most.

mod inputs;
mod job;
mod limits;
mod work;

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::compute::{ChosenOps, Compute};
use super::loading::{self, Located};
use crate::config::{ComputeSettings, Config};
use crate::engine::backend::Backend;
use crate::model::ops::Ops;
use crate::model::ops::timed::{Part, Timed, Times};
use crate::model::{BlipBackend, ModelSpec, Placement};
use crate::task::{Device, Dtype, ModelId, ModelInfo};
use job::Job;
pub use limits::{Limits, Machine, read_bytes_per_second};
pub use work::Work;

/// Models whose files were found, to be loaded in one format after another.
pub struct Checkpoints(Vec<Located>);

impl Checkpoints {
    /// Finds or downloads every configured model.
    ///
    /// # Errors
    /// When one cannot be had.
    pub async fn locate(config: &Config) -> anyhow::Result<Self> {
        Ok(Self(loading::locate(config).await?))
    }
}

/// How something is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Timed runs.
    pub runs: NonZeroUsize,
    /// Runs before them that do not count.
    pub warm_up: usize,
    /// Tokens of a caption or an answer: exactly as many, the stop token is forbidden before.
    pub tokens: NonZeroUsize,
    /// One more run, of which the parts are told apart.
    pub profile: bool,
}

impl Plan {
    /// Runs of all kinds.
    #[must_use]
    pub fn all_runs(&self) -> usize {
        self.warm_up + self.runs.get() + usize::from(self.profile)
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Of each timed run, the whole batch.
    pub seconds: Vec<f64>,
    /// Where the profiled run's time went, the longest first; empty without one.
    pub parts: Vec<PartSeconds>,
}

/// A part of the profiled run.
#[derive(Debug, Clone, PartialEq)]
pub struct PartSeconds {
    /// Its name.
    pub part: String,
    /// Sum over its calls.
    pub seconds: f64,
    /// How many.
    pub calls: usize,
    /// What its calls had to do at least, where that is known.
    pub work: Option<PartWork>,
}

/// What a product of many rows multiplies, or what one of few rows reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartWork {
    /// Multiplications and additions.
    Operations(usize),
    /// Bytes of weights, each call's read once.
    Bytes(usize),
}

impl PartWork {
    fn of(part: Part, calls: usize, dtype: Dtype) -> Option<Self> {
        let Part::Linear { input, output, rows } = part else { return None };
        let value_bytes = match dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::Int8 => 1,
        };
        let weights = input * output * calls;
        Some(rows.map_or(Self::Bytes(weights * value_bytes), |rows| {
            Self::Operations(2 * weights * rows)
        }))
    }
}

/// What computes, every `auto` resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The number format.
    pub dtype: &'static str,
    /// The kernels' instructions; `candle`, or the GPU, where the kernels do not compute.
    pub level: String,
    /// Threads of the arithmetic.
    pub threads: usize,
}

/// Loaded models.
pub struct Bench {
    models: Box<dyn Models>,
    setup: Setup,
}

impl Bench {
    /// Loads the models for these settings.
    ///
    /// # Errors
    /// When one cannot be loaded, or there is no such device.
    pub fn load(settings: ComputeSettings, checkpoints: &Checkpoints) -> anyhow::Result<Self> {
        let compute = Compute::resolve(settings);
        let specs = checkpoints.0.iter().map(|located| located.spec.clone()).collect::<Vec<_>>();
        let placement = compute.placement;
        let (models, level) = match compute.ops().context("cannot open the device")? {
            ChosenOps::Kernels(ops) => {
                (load(ops, &specs, placement)?, compute.level.name().to_owned())
            }
            ChosenOps::Candle(ops) => {
                let level = match placement.device {
                    Device::Cpu => "candle".to_owned(),
                    device @ Device::Cuda(_) => device.to_string(),
                };
                (load(ops, &specs, placement)?, level)
            }
        };
        let setup = Setup { dtype: placement.dtype.name(), level, threads: compute.threads };
        Ok(Self { models, setup })
    }

    /// What computes.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The kinds of work, or all where none is named, each with every model that does it; a vision tower that models
    /// share stands with the first of them.
    ///
    /// # Errors
    /// When no model does one of them.
    pub fn cases(&self, works: &[Work]) -> anyhow::Result<Vec<(ModelInfo, Work)>> {
        let infos = self.models.infos();
        for work in works {
            ensure!(
                infos.iter().any(|info| work.is_done_by(info.class)),
                "no model does {work}; what the models do: {}",
                Work::names(
                    Work::ALL
                        .iter()
                        .filter(|work| infos.iter().any(|info| work.is_done_by(info.class)))
                )
            );
        }
        let works = if works.is_empty() { &Work::ALL } else { works };
        let has_own_tower =
            |info: &ModelInfo| infos.iter().find(|other| other.tower == info.tower) == Some(info);
        let of_model = |info: &ModelInfo| -> Vec<(ModelInfo, Work)> {
            let done = works.iter().filter(|work| work.is_done_by(info.class));
            done.filter(|work| **work != Work::Vision || has_own_tower(info))
                .map(|work| (info.clone(), *work))
                .collect()
        };
        Ok(infos.iter().flat_map(of_model).collect())
    }

    /// Measures one kind of work of one model on a batch. `on_run` is called after each run.
    ///
    /// # Errors
    /// When the model has no room for so many tokens, or the device fails.
    pub fn measure(
        &mut self,
        (info, work): &(ModelInfo, Work),
        batch: NonZeroUsize,
        plan: &Plan,
        on_run: &mut dyn FnMut(),
    ) -> anyhow::Result<Measurement> {
        let vocabulary = self.models.vocabulary(info.id);
        let job = Job::new(info, *work, batch.get(), plan.tokens.get(), vocabulary)?;
        let mut run = |profile| {
            let run = self.models.run(&job, profile);
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

/// One run of a job.
struct Run {
    seconds: f64,
    parts: Vec<PartSeconds>,
}

/// Loaded models over any operations.
trait Models {
    fn infos(&self) -> &[ModelInfo];
    /// Rows of the model's table of words.
    fn vocabulary(&self, model: ModelId) -> usize;
    fn run(&mut self, job: &Job, profile: bool) -> anyhow::Result<Run>;
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
        self.backend.vocabulary(model).size
    }

    fn run(&mut self, job: &Job, profile: bool) -> anyhow::Result<Run> {
        let known = job.prepare(&mut self.backend)?;
        if profile {
            self.times.start();
        }
        let seconds = job.run(&mut self.backend, known)?.as_secs_f64();
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
        Ok(Run { seconds, parts })
    }
}

/// What a run does between the operations: search, lists, memory.
const OUTSIDE: &str = "between operations";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rows_are_bound_by_arithmetic_and_few_by_the_weights() {
        let linear = |rows| Part::Linear { input: 768, output: 3072, rows };
        let of = |part, dtype| PartWork::of(part, 12, dtype);
        let operations = 2 * 577 * 768 * 3072 * 12;
        assert_eq!(of(linear(Some(577)), Dtype::Int8), Some(PartWork::Operations(operations)));
        assert_eq!(of(linear(None), Dtype::Bf16), Some(PartWork::Bytes(768 * 3072 * 12 * 2)));
        assert_eq!(of(Part::LayerNorm, Dtype::F32), None);
    }
}
