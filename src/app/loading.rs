//! Sources to files, files to models and tokenizers, placed on a device.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::memory::{MemoryBudget, MemoryLimit};
use crate::config::{ComputeSettings, Config, DeviceChoice, DtypeChoice};
use crate::demo::{self, DemoFile, DemoModel};
use crate::engine::backend::Backend;
use crate::http::{Model, Models};
use crate::hub::{self, CheckpointFiles, ModelSource, Progress, Source};
use crate::input::{InputSettings, Tokenizer};
use crate::model::load::{File, ModelFiles, WeightFiles, Weights};
use crate::model::ops::candle::CandleOps;
use crate::model::{BlipBackend, Loaded, ModelSpec, Placement};
use crate::task::{Device, Dtype, ModelInfo};
use crate::telemetry::metrics::Metrics;

/// Everything that was loaded.
pub(super) struct LoadedModels {
    /// For the worker.
    pub(super) backend: BlipBackend<CandleOps>,
    /// For the handlers.
    pub(super) models: Models,
}

/// One model's files and where its tokenizer lies.
struct Located {
    spec: ModelSpec,
    tokenizer: TokenizerPlace,
}

enum TokenizerPlace {
    Directory(PathBuf),
    InBinary(&'static DemoModel),
}

impl Located {
    fn on_disk(model: &ModelSource, files: CheckpointFiles) -> Self {
        let tokenizer = TokenizerPlace::Directory(files.directory.clone());
        Self { spec: spec(model, files), tokenizer }
    }

    fn in_binary(model: &ModelSource, demo: &'static DemoModel) -> Self {
        Self { spec: demo_spec(model, demo), tokenizer: TokenizerPlace::InBinary(demo) }
    }
}

/// Finds or downloads every model, then loads them one after the other.
pub(super) async fn load(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<LoadedModels> {
    let progress = Progress::detect();
    let mut located = Vec::with_capacity(config.models.len());
    for model in &config.models {
        if let Source::Demo(name) = model.source {
            let demo = demo::model(name).context("the demo model is not in this binary")?;
            located.push(Located::in_binary(model, demo));
            continue;
        }
        let files = hub::locate(&model.source, &config.hub, &progress)
            .await
            .with_context(|| format!("cannot find model {}", model.source))?;
        located.push(Located::on_disk(model, files));
    }
    let (config, metrics) = (config.clone(), Arc::clone(metrics));
    let loaded = tokio::task::spawn_blocking(move || load_files(&config, &located, &metrics));
    loaded.await.context("loading panicked")?
}

fn load_files(
    config: &Config,
    located: &[Located],
    metrics: &Metrics,
) -> anyhow::Result<LoadedModels> {
    let placement = placement(config.compute);
    let specs: Vec<ModelSpec> = located.iter().map(|located| located.spec.clone()).collect();
    // From the files' headers, so that a container that is too small hears why before it is killed.
    let budget = budget(config, weight_bytes(&specs, placement)?);
    tracing::info!(memory.bound_bytes = budget.total(), "the settings allow {budget}");
    budget.check(MemoryLimit::detect()).map_err(anyhow::Error::msg)?;
    let backend = BlipBackend::load(&specs, placement, |loaded| report(&loaded, metrics))
        .context("cannot load the models")?;
    let mut models = Vec::with_capacity(located.len());
    for (info, located) in backend.models().iter().zip(located) {
        let tokenizer = load_tokenizer(&located.tokenizer, &config.http.input)
            .with_context(|| format!("cannot load the tokenizer of model {}", info.name))?;
        check_vocabulary(&backend, info, &tokenizer)?;
        models.push(Model { info: info.clone(), tokenizer: Arc::new(tokenizer) });
    }
    if backend.models().iter().any(|info| info.demo) {
        tracing::warn!(
            "serving the demo models inside the binary: they know synthetic scenes of emoji only, nothing of photographs. \
             For those name models, for example: --model Salesforce/blip-image-captioning-base --model \
             Salesforce/blip-vqa-base --model Salesforce/blip-itm-base-coco"
        );
    }
    Ok(LoadedModels { models: Models::new(models), backend })
}

fn load_tokenizer(place: &TokenizerPlace, settings: &InputSettings) -> anyhow::Result<Tokenizer> {
    Ok(match place {
        TokenizerPlace::Directory(directory) => Tokenizer::load(directory, settings)?,
        TokenizerPlace::InBinary(DemoModel { tokenizer, tokenizer_config, .. }) => {
            Tokenizer::from_texts(
                Path::new(tokenizer.path),
                std::str::from_utf8(tokenizer.bytes)?,
                std::str::from_utf8(tokenizer_config.bytes)?,
                settings,
            )?
        }
    })
}

/// A tokenizer of another model gives ids that mean something else, or that the tables do not hold.
fn check_vocabulary(
    backend: &BlipBackend<CandleOps>,
    info: &ModelInfo,
    tokenizer: &Tokenizer,
) -> anyhow::Result<()> {
    let vocabulary = backend.vocabulary(info.id);
    ensure!(
        tokenizer.vocab_size() <= vocabulary.size,
        "model {}: the tokenizer knows {} tokens, config.json says vocab_size {}: they belong to different models",
        info.name,
        tokenizer.vocab_size(),
        vocabulary.size
    );
    ensure!(
        tokenizer.sep_id() == vocabulary.stop_token,
        "model {}: the tokenizer's [SEP] is {}, config.json says sep_token_id {}: they belong to different models",
        info.name,
        tokenizer.sep_id(),
        vocabulary.stop_token
    );
    Ok(())
}

fn spec(model: &ModelSource, files: CheckpointFiles) -> ModelSpec {
    let weights = match files.weights {
        hub::WeightFiles::Safetensors(paths) => {
            WeightFiles::Safetensors(paths.into_iter().map(File::OnDisk).collect())
        }
        hub::WeightFiles::Pickle(paths) => WeightFiles::Pickle(paths),
    };
    ModelSpec {
        name: model.name.clone(),
        source: model.source.to_string(),
        revision: files.revision,
        demo: false,
        files: ModelFiles {
            config: files.config.into(),
            preprocessor: files.preprocessor.or(files.processor).map(File::OnDisk),
            weights,
        },
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

/// `auto` on a CPU is f32 until there are kernels for bf16; on a GPU bf16.
fn placement(compute: ComputeSettings) -> Placement {
    let device = match compute.device {
        DeviceChoice::Cuda(ordinal) => Device::Cuda(ordinal),
        DeviceChoice::Auto if candle_core::utils::cuda_is_available() => Device::Cuda(0),
        DeviceChoice::Auto | DeviceChoice::Cpu => Device::Cpu,
    };
    let dtype = match (compute.dtype, device) {
        (DtypeChoice::F32, _) | (DtypeChoice::Auto, Device::Cpu) => Dtype::F32,
        (DtypeChoice::Bf16, _) | (DtypeChoice::Auto, Device::Cuda(_)) => Dtype::Bf16,
        (DtypeChoice::F16, _) => Dtype::F16,
    };
    Placement { device, dtype }
}

/// Bytes of the weights in host memory, towers that models will share counted for each.
fn weight_bytes(specs: &[ModelSpec], placement: Placement) -> anyhow::Result<u64> {
    let element = match (placement.device, placement.dtype) {
        (Device::Cuda(_), _) => 0,
        (Device::Cpu, Dtype::F32) => 4,
        (Device::Cpu, Dtype::Bf16 | Dtype::F16) => 2,
    };
    let mut parameters = 0;
    for spec in specs {
        let weights = Weights::open(&spec.files.weights)
            .with_context(|| format!("cannot load model {}", spec.name))?;
        parameters += weights.parameter_count();
    }
    Ok(parameters * element)
}

fn budget(config: &Config, weights: u64) -> MemoryBudget {
    MemoryBudget {
        weights,
        bodies: config.engine.capacity_bytes,
        decoding: config.images.decode_budget_bytes,
        pixels: config.images.pixel_cache_bytes,
        // Pinned features are cached ones too, where there is a cache.
        features: config.engine.feature_cache_bytes.max(config.engine.max_pinned_feature_bytes),
        kv: config.engine.max_kv_bytes,
    }
}

/// Sizes the pool that candle's arithmetic runs on before anything uses it. Its own default is the machine's
/// cores, whatever the container's quota.
pub(super) fn set_threads(threads: Option<NonZeroUsize>) {
    let threads =
        threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("blip-cpu-{i}"));
    match pool.build_global() {
        Ok(()) => tracing::info!(
            cpu.threads = threads,
            cpu.isa = cpu_isa(),
            "computing on {threads} threads"
        ),
        // Only a second server in one process comes here, as tests make them.
        Err(error) => tracing::debug!(%error, "the arithmetic's threads were started before"),
    }
}

/// The instruction set that the matrix products choose at run time.
pub(super) fn cpu_isa() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return "avx512-f32-gemm";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "avx2-f32-gemm";
        }
    }
    "generic-f32-gemm"
}
