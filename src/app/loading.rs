//! Loads the configured models: resolves sources to files (downloading if needed), loads weights onto the device, and
//! loads the tokenizers. `App` and `bench` call it; `mock` replaces it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::bar::LoadBar;
use super::compute::{Backends, ChosenOps, Compute, LoadedBackends};
use super::memory_budget::{HostShare, MemoryBudget, MemoryLimit, weight_bytes};
use super::start_error::VocabularyMismatch;
use crate::config::Config;
use crate::demo::{self, DemoFile, DemoModel};
use crate::engine::backend::Backend;
use crate::engine::{Rebuild, WorkerBackend};
use crate::fairness;
use crate::http::{Model, Models};
use crate::hub::{self, CheckpointFiles, CheckpointSource, DownloadProgress, ModelSource};
use crate::input::{InputSettings, Tokenizer};
use crate::model::load::{File, ModelFiles, WeightFiles};
use crate::model::ops::Ops;
use crate::model::preprocessor::deciding_file;
use crate::model::{self, BlipBackend, LoadEvent, Loaded, ModelSpec, Placement, Vocabulary};
use crate::task::ModelInfo;
use crate::telemetry::metrics::Metrics;

/// The loaded models, in two parts: one for the engine, and one for the HTTP handlers.
pub(super) struct LoadedModels {
    /// The backends for the worker threads of the engine.
    pub(super) backends: LoadedBackends,
    /// Model facts and tokenizers, for the HTTP handlers.
    pub(super) models: Models,
}

/// The files of one model, found or downloaded but not loaded yet.
pub(super) struct Located {
    pub(super) spec: ModelSpec,
    /// Place of the tokenizer; `None` for a checkpoint that has none.
    tokenizer: Option<TokenizerPlace>,
}

enum TokenizerPlace {
    Directory(PathBuf),
    InBinary(&'static DemoModel),
}

impl Located {
    fn on_disk(model: &ModelSource, files: CheckpointFiles) -> Self {
        let directory = || TokenizerPlace::Directory(files.directory.clone());
        let tokenizer = files.tokenizer.as_ref().map(|_| directory());
        Self { spec: spec(model, files), tokenizer }
    }

    fn in_binary(model: &ModelSource, demo: &'static DemoModel) -> Self {
        Self { spec: demo_spec(model, demo), tokenizer: Some(TokenizerPlace::InBinary(demo)) }
    }
}

/// Finds or downloads every configured model, then loads them one after the other on a blocking thread.
pub(super) async fn load(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<LoadedModels> {
    let located = locate(config).await?;
    let (config, metrics) = (config.clone(), Arc::clone(metrics));
    let loaded = tokio::task::spawn_blocking(move || load_files(&config, &located, &metrics));
    loaded.await.context("loading panicked")?
}

/// Finds or downloads the files of every configured model.
pub(super) async fn locate(config: &Config) -> anyhow::Result<Vec<Located>> {
    let progress = DownloadProgress::detect();
    let mut located = Vec::with_capacity(config.models.len());
    for model in &config.models {
        if let CheckpointSource::Demo(name) = model.source {
            let demo = demo::model(name).context("the demo model is not in this binary")?;
            located.push(Located::in_binary(model, demo));
            continue;
        }
        let files = hub::locate(&model.source, &config.hub, &progress)
            .await
            .with_context(|| format!("cannot find model {}", model.source))?;
        located.push(Located::on_disk(model, files));
    }
    Ok(located)
}

/// Checks the demo models and those in directories, before any port is bound. For each of them, reads the JSON files, the
/// headers of the weight files and the tokenizer. Models from the hub are not checked here.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    for model in &config.models {
        let cannot = || format!("cannot serve model {}", model.name);
        let located = match &model.source {
            CheckpointSource::Directory(directory) => {
                let files = CheckpointFiles::resolve(directory).with_context(cannot)?;
                Located::on_disk(model, files)
            }
            CheckpointSource::Demo(name) => {
                let demo = demo::model(name).context("the demo model is not in this binary")?;
                Located::in_binary(model, demo)
            }
            CheckpointSource::Hub(_) => continue,
        };
        check_files(&located, &config.http.input).with_context(cannot)?;
    }
    Ok(())
}

/// Reads the JSON files, the headers of the weight files and the tokenizer of a model.
fn check_files(located: &Located, settings: &InputSettings) -> anyhow::Result<()> {
    let vocabulary = model::check(&located.spec)?;
    load_tokenizer(located.tokenizer.as_ref(), vocabulary, settings).map(drop)
}

/// Finds the files of one model, without downloading any, and checks them without reading the weights.
pub(super) async fn inspect(model: &ModelSource, config: &Config) -> anyhow::Result<ModelSpec> {
    let mut one = config.clone();
    one.models = vec![model.clone()];
    one.hub.offline = true;
    let located = locate(&one).await?.pop().context("a model was located")?;
    check_files(&located, &config.http.input)?;
    Ok(located.spec)
}

fn load_files(
    config: &Config,
    located: &[Located],
    metrics: &Arc<Metrics>,
) -> anyhow::Result<LoadedModels> {
    let compute = Compute::resolve(config.compute);
    let specs: Vec<ModelSpec> = located.iter().map(|located| located.spec.clone()).collect();
    // Check the budget before the weights are loaded; it needs only the headers of the weight files. If the container
    // is too small, the log then gives the reason; without this check, the kernel would kill the process.
    let others = compute.for_further_gpus(config.compute);
    // Before gigabytes are loaded onto the first GPU.
    others.iter().try_for_each(|compute| compute.check_device())?;
    let workers =
        HostShare { device: compute.placement.device, workers: config.compute.device.workers() };
    let weights = weight_bytes(&specs, compute.placement)?;
    let budget = MemoryBudget::of(config, workers, weights);
    tracing::info!(memory.bound_bytes = budget.total(), "memory allowed by the settings: {budget}");
    budget.check(MemoryLimit::detect()).map_err(anyhow::Error::msg)?;
    let kv_bytes = fairness::with_reserve(config.engine.max_kv_bytes);
    let load = Load { compute, others: &others, kv_bytes, specs: &specs, config, located, metrics };
    match open(compute, kv_bytes)? {
        ChosenOps::Kernels(ops) => load.finish(ops, LoadedBackends::Kernels, |ops| match ops {
            ChosenOps::Kernels(ops) => Some(ops),
            ChosenOps::Candle(_) | ChosenOps::Gpu(_) => None,
        }),
        ChosenOps::Candle(ops) => load.finish(ops, LoadedBackends::Candle, |ops| match ops {
            ChosenOps::Candle(ops) => Some(ops),
            ChosenOps::Kernels(_) | ChosenOps::Gpu(_) => None,
        }),
        ChosenOps::Gpu(ops) => load.finish(ops, LoadedBackends::Gpu, |ops| match ops {
            ChosenOps::Gpu(ops) => Some(ops),
            ChosenOps::Kernels(_) | ChosenOps::Candle(_) => None,
        }),
    }
}

fn open(compute: Compute, kv_bytes: u64) -> anyhow::Result<ChosenOps> {
    compute.ops(kv_bytes).context("cannot open the device")
}

/// What is needed to load the models, on whichever operations.
struct Load<'a> {
    compute: Compute,
    /// The same for each further GPU, which runs the same models.
    others: &'a [Compute],
    /// Bound of the KV caches of each device, in bytes.
    kv_bytes: u64,
    specs: &'a [ModelSpec],
    config: &'a Config,
    located: &'a [Located],
    metrics: &'a Arc<Metrics>,
}

impl Load<'_> {
    /// Loads the models on `ops`, and then on each further GPU. `pick` takes operations of the same kind as `ops`.
    fn finish<O: Ops + 'static>(
        &self,
        ops: O,
        backends_of: fn(Backends<BlipBackend<O>>) -> LoadedBackends,
        pick: fn(ChosenOps) -> Option<O>,
    ) -> anyhow::Result<LoadedModels> {
        let first = load_models(ops, self.specs, self.compute.placement, self.metrics)?;
        let models = with_tokenizers(&first, self.config, self.located)?;
        let reload = |compute| self.reload(compute, &models, pick);
        let on_further_gpu = |&compute: &Compute| {
            let mut rebuild = reload(compute);
            let backend = rebuild().map_err(anyhow::Error::from_boxed);
            let on = || format!("cannot load the models on {}", compute.placement.device);
            let backend = backend.with_context(on)?;
            ensure_same(&models, backend.models())?;
            Ok(WorkerBackend { backend, rebuild: Some(rebuild) })
        };
        let others = self.others.iter().map(on_further_gpu).collect::<anyhow::Result<_>>()?;
        let first = WorkerBackend { backend: first, rebuild: Some(reload(self.compute)) };
        Ok(LoadedModels { backends: backends_of(Backends { first, others }), models })
    }

    /// Creates the function that opens a device and loads the same models from the same files: on a further GPU, and after
    /// a device failure.
    fn reload<O: Ops + 'static>(
        &self,
        compute: Compute,
        models: &Models,
        pick: fn(ChosenOps) -> Option<O>,
    ) -> Rebuild<BlipBackend<O>> {
        let kv_bytes = self.kv_bytes;
        let (specs, metrics) = (self.specs.to_vec(), Arc::clone(self.metrics));
        let models = models.clone();
        Box::new(move || {
            let ops =
                pick(open(compute, kv_bytes)?).context("the device changed since the start")?;
            let backend = load_models(ops, &specs, compute.placement, &metrics)?;
            // The weight files may have changed since startup. The tokenizers are still those loaded at startup, so check
            // that they match the new weights.
            for Model { info, tokenizer } in models.iter() {
                if let (Some(vocabulary), Some(tokenizer)) =
                    (backend.vocabulary(info.id), tokenizer)
                {
                    check_vocabulary(vocabulary, tokenizer)
                        .with_context(|| format!("cannot serve model {}", info.name))?;
                }
            }
            Ok(backend)
        })
    }
}

/// Checks that a further GPU has the models of the first. The files may have changed in between.
fn ensure_same(models: &Models, further: &[ModelInfo]) -> anyhow::Result<()> {
    for (Model { info, .. }, further) in models.iter().zip(further) {
        let same = *info == ModelInfo { device: info.device, ..further.clone() };
        anyhow::ensure!(same, "the files of model {} changed while they were loaded", info.name);
    }
    Ok(())
}

fn load_models<O: Ops>(
    ops: O,
    specs: &[ModelSpec],
    placement: Placement,
    metrics: &Metrics,
) -> anyhow::Result<BlipBackend<O>> {
    let bar = LoadBar::start();
    BlipBackend::load(ops, specs, placement, |event| match event {
        LoadEvent::Read { model, values, of } => bar.read(model, values, of),
        LoadEvent::Loaded(loaded) => {
            bar.next();
            report(&loaded, metrics);
        }
    })
    .context("cannot load the models")
}

/// Loads the tokenizers and pairs each with its model, for the handlers.
fn with_tokenizers<O: Ops>(
    backend: &BlipBackend<O>,
    config: &Config,
    located: &[Located],
) -> anyhow::Result<Models> {
    let mut models = Vec::with_capacity(located.len());
    for (info, located) in backend.models().iter().zip(located) {
        let cannot = || format!("cannot serve model {}", info.name);
        let (place, vocabulary) = (located.tokenizer.as_ref(), backend.vocabulary(info.id));
        let tokenizer =
            load_tokenizer(place, vocabulary, &config.http.input).with_context(cannot)?;
        models.push(Model { info: info.clone(), tokenizer: tokenizer.map(Arc::new) });
    }
    if backend.models().iter().any(|info| info.demo) {
        tracing::warn!(
            "serving the built-in demo models: they know only synthetic scenes of emoji, not photographs; for \
             photographs name other models, for example: --model Salesforce/blip-image-captioning-base --model \
             Salesforce/blip-vqa-base --model Salesforce/blip-itm-base-coco"
        );
    }
    Ok(Models::new(models))
}

/// Loads the tokenizer of a model with this vocabulary, and checks that it matches. Returns `None` for a model without a
/// text tower, which has no vocabulary.
fn load_tokenizer(
    place: Option<&TokenizerPlace>,
    vocabulary: Option<Vocabulary>,
    settings: &InputSettings,
) -> anyhow::Result<Option<Tokenizer>> {
    let Some(vocabulary) = vocabulary else { return Ok(None) };
    let place = place.context("the checkpoint has no tokenizer")?;
    let tokenizer = match place {
        TokenizerPlace::Directory(directory) => Tokenizer::load(directory, settings)?,
        TokenizerPlace::InBinary(DemoModel { tokenizer, tokenizer_config, .. }) => {
            Tokenizer::from_texts(
                Path::new(tokenizer.path),
                std::str::from_utf8(tokenizer.bytes)?,
                std::str::from_utf8(tokenizer_config.bytes)?,
                settings,
            )?
        }
    };
    check_vocabulary(vocabulary, &tokenizer)?;
    Ok(Some(tokenizer))
}

fn check_vocabulary(
    vocabulary: Vocabulary,
    tokenizer: &Tokenizer,
) -> Result<(), VocabularyMismatch> {
    let (tokens, vocab_size) = (tokenizer.vocab_size(), vocabulary.size);
    if tokens > vocab_size {
        return Err(VocabularyMismatch::Size { tokens, vocab_size });
    }
    let (separator, sep_token_id) = (tokenizer.sep_id(), vocabulary.stop_token);
    if separator != sep_token_id {
        return Err(VocabularyMismatch::Separator { separator, sep_token_id });
    }
    Ok(())
}

fn spec(model: &ModelSource, files: CheckpointFiles) -> ModelSpec {
    let weights = match files.weights {
        hub::WeightFiles::Safetensors(paths) => {
            WeightFiles::Safetensors(paths.into_iter().map(File::OnDisk).collect())
        }
        hub::WeightFiles::Pickle(paths) => WeightFiles::Pickle(paths),
        hub::WeightFiles::TensorFlow(path) => WeightFiles::TensorFlow(path),
    };
    ModelSpec {
        name: model.name.clone(),
        source: model.source.to_string(),
        revision: files.revision,
        demo: false,
        files: ModelFiles {
            config: files.config.into(),
            preprocessor: deciding_file(files.preprocessor, files.processor),
            weights,
        },
        image_size: model.image_size,
    }
}

fn demo_spec(model: &ModelSource, demo: &DemoModel) -> ModelSpec {
    let file = |file: &DemoFile| File::InBinary { path: file.path, bytes: file.bytes };
    ModelSpec {
        name: model.name.clone(),
        source: model.source.to_string(),
        revision: None,
        demo: true,
        files: ModelFiles {
            config: file(&demo.config),
            preprocessor: Some(file(&demo.preprocessor)),
            weights: WeightFiles::Safetensors(demo.weights.iter().map(file).collect()),
        },
        image_size: model.image_size,
    }
}

fn report(loaded: &Loaded<'_>, metrics: &Metrics) {
    let info = loaded.info;
    metrics.model_load_seconds.with_label_values(&[&info.name]).set(loaded.elapsed.as_secs_f64());
    let revision = info.revision.as_deref().unwrap_or_default();
    let device = info.device.to_string();
    metrics
        .model_info
        .with_label_values(&[&info.name, info.role().name(), revision, info.dtype.name(), &device])
        .set(1);
    tracing::info!(
        model.id = info.name,
        model.source = info.source,
        model.class = info.class.name(),
        model.parameters = info.parameter_count,
        dtype = info.dtype.name(),
        device,
        shares_vision_tower = loaded.shares_tower,
        elapsed_ms = loaded.elapsed.as_millis() as u64,
        "loaded model {} ({})",
        info.name,
        info.role().name(),
    );
}
