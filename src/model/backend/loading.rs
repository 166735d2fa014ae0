//! Loads checkpoints into a backend. Models share towers that have equal configurations and byte-identical weights.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::DType;

use super::sharing::{OpenedCheckpoint, SharedParts};
use super::{BlipBackend, Vocabulary};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::BlipConfig;
use crate::model::error::LoadError;
use crate::model::load::{CheckpointWeights, Loader, ModelFiles};
use crate::model::ops::candle::CandleOps;
use crate::model::ops::{Ops, PersistentKvShape};
use crate::model::vision::VisionTower;
use crate::task::{
    Device, Dtype, ModelClass, ModelId, ModelInfo, StatesShape, TextInfo, TowerId, VisionInfo,
};

/// A model to load, with the locations of its files.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Name of the model in requests.
    pub name: String,
    /// Hub id or directory, as configured.
    pub source: String,
    /// Revision on the hub; `None` for a directory.
    pub revision: Option<String>,
    /// True for the demo models, which are embedded in the binary.
    pub demo: bool,
    /// Configuration and weight files of the checkpoint.
    pub files: ModelFiles,
    /// Side of the input images in pixels, if it differs from the checkpoint's.
    pub image_size: Option<u32>,
}

/// Device on which models run, and number format in which they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Device that holds the weights.
    pub device: Device,
    /// Number format of weights and activations.
    pub dtype: Dtype,
}

/// Result of loading one model, for logs and metrics.
#[derive(Debug, Clone, Copy)]
pub struct Loaded<'a> {
    /// Description of the loaded model.
    pub info: &'a ModelInfo,
    /// Time taken to load the model.
    pub elapsed: Duration,
    /// True if the model shares the vision tower of an earlier model.
    pub shares_tower: bool,
}

/// A progress report of [`BlipBackend::load`].
#[derive(Debug)]
pub enum LoadEvent<'a> {
    /// The values of a tensor were read. Next, they are converted and packed.
    Read {
        /// Name of the model in requests.
        model: &'a str,
        /// Number of values read since the previous `Read` event of this model.
        values: u64,
        /// Total number of values in the model's files. If the model shares a tower, fewer values are read.
        of: u64,
    },
    /// A model is completely loaded.
    Loaded(Loaded<'a>),
}

/// Checks a model's configuration files and the headers of its weight files, without reading the weights. Returns the
/// vocabulary that the model's tokenizer must match, or `None` if the model has no text tower.
///
/// # Errors
/// When one of the files is not valid; the error names the file.
pub fn check(spec: &ModelSpec) -> Result<Option<Vocabulary>, LoadError> {
    OpenedCheckpoint::open(spec).map(|opened| Vocabulary::of(&opened.config, opened.class))
}

impl<O: Ops> BlipBackend<O> {
    /// Loads the models, which will run on `ops`. `placement` must be the device and number format of `ops`; it becomes
    /// part of the models' descriptions. `on_event` is called with progress reports.
    ///
    /// # Errors
    /// Returns the error of the first model that cannot be loaded. It names the file or tensor.
    pub fn load(
        ops: O,
        specs: &[ModelSpec],
        placement: Placement,
        on_event: impl FnMut(LoadEvent<'_>),
    ) -> Result<Self, LoadError> {
        let mut backend = Self {
            ops,
            towers: Vec::new(),
            models: Vec::new(),
            infos: Vec::new(),
            cross_kv_bytes: Vec::new(),
            token_kv_bytes: Vec::new(),
            vocabularies: Vec::new(),
        };
        let on_event = RefCell::new(on_event);
        let checkpoints =
            specs.iter().map(OpenedCheckpoint::open).collect::<Result<Vec<_>, _>>()?;
        let mut shared: SharedParts<O> = SharedParts::new(&checkpoints);
        for (spec, opened) in specs.iter().zip(&checkpoints) {
            let start = Instant::now();
            let towers = backend.towers.len();
            let of = opened.weights.parameter_count();
            let on_read = |values| {
                on_event.borrow_mut()(LoadEvent::Read { model: &spec.name, values, of });
            };
            backend.add(spec, opened, placement, &mut shared, &on_read)?;
            on_event.borrow_mut()(LoadEvent::Loaded(Loaded {
                info: &backend.infos[backend.infos.len() - 1],
                elapsed: start.elapsed(),
                shares_tower: backend.towers.len() == towers,
            }));
        }
        Ok(backend)
    }

    fn add(
        &mut self,
        spec: &ModelSpec,
        opened: &OpenedCheckpoint,
        placement: Placement,
        shared: &mut SharedParts<O>,
        on_read: &dyn Fn(u64),
    ) -> Result<(), LoadError> {
        let OpenedCheckpoint { config, class, weights, .. } = opened;
        let class = *class;
        let vision = self.add_vision(opened, shared, on_read)?;
        let loader = Loader::new(weights, &self.ops, on_read);
        let checkpoint = if let Some(checkpoint) = shared.checkpoint(&spec.files) {
            checkpoint
        } else {
            let text = shared.encoder_key(opened)?;
            let checkpoint =
                Checkpoint::load(&loader, config, class, shared.encoder(text.as_ref()))?;
            shared.add_encoder(text, checkpoint.text_encoder());
            let checkpoint = Arc::new(checkpoint);
            shared.add_checkpoint(spec.files.clone(), &checkpoint);
            checkpoint
        };
        let text_config = &config.text_config;
        let (layers, width) = (text_config.num_hidden_layers, text_config.hidden_size);
        self.token_kv_bytes.push(layers as u64 * self.ops.kv_bytes_per_token(width));
        self.cross_kv_bytes.push(match class {
            ModelClass::ConditionalGeneration => self.ops.cross_kv_bytes(PersistentKvShape {
                tokens: vision.as_ref().map_or(0, |vision| vision.tokens),
                memory_width: config.vision_config.hidden_size,
                layers,
                heads: text_config.num_attention_heads,
                width,
            }),
            ModelClass::QuestionAnswering
            | ModelClass::ImageTextRetrieval
            | ModelClass::Base
            | ModelClass::Vision
            | ModelClass::Text => 0,
        });
        self.infos.push(ModelInfo {
            id: ModelId(self.infos.len()),
            name: spec.name.clone(),
            class,
            source: spec.source.clone(),
            revision: spec.revision.clone(),
            dtype: placement.dtype,
            device: placement.device,
            vision,
            text: (class != ModelClass::Vision).then_some(TextInfo {
                states: StatesShape { layers, width },
                max_tokens: text_config.max_position_embeddings,
                has_pooler: checkpoint.has_text_pooler(),
            }),
            embedding_dimensions: embedding_dimensions(config, class),
            multimodal_dimensions: multimodal_dimensions(config, class),
            logit_scale: logit_scale(weights, class)?,
            parameter_count: weights.parameter_count(),
            demo: spec.demo,
        });
        self.vocabularies.push(Vocabulary::of(config, class));
        self.models.push(checkpoint);
        Ok(())
    }

    /// Loads the vision tower of a model, unless an earlier model has the same one. Returns `None` if the model has no
    /// vision tower.
    fn add_vision(
        &mut self,
        opened: &OpenedCheckpoint,
        shared: &mut SharedParts<O>,
        on_read: &dyn Fn(u64),
    ) -> Result<Option<VisionInfo>, LoadError> {
        let OpenedCheckpoint { config, preprocessor, weights, .. } = opened;
        let (Some(key), Some(preprocessor)) = (shared.vision_key(opened)?, preprocessor) else {
            return Ok(None);
        };
        let tower = if let Some(tower) = shared.tower(&key) {
            tower
        } else {
            let loader = Loader::new(weights, &self.ops, on_read);
            let encoder = shared.vision_encoder(&key);
            let tower = VisionTower::load(&loader, &config.vision_config, preprocessor, encoder)?;
            shared.add_tower(key, TowerId(self.towers.len()), tower.encoder());
            self.towers.push(tower);
            TowerId(self.towers.len() - 1)
        };
        Ok(Some(VisionInfo {
            tower,
            preprocessing: preprocessor.preprocessing,
            states: StatesShape {
                layers: config.vision_config.num_hidden_layers,
                width: config.vision_config.hidden_size,
            },
            tokens: self.towers[tower.0].tokens(),
        }))
    }
}

impl Vocabulary {
    fn of(config: &BlipConfig, class: ModelClass) -> Option<Self> {
        let text = &config.text_config;
        let vocabulary = Self { size: text.vocab_size, stop_token: text.sep_token_id };
        (class != ModelClass::Vision).then_some(vocabulary)
    }
}

fn embedding_dimensions(config: &BlipConfig, class: ModelClass) -> Option<usize> {
    match class {
        ModelClass::ImageTextRetrieval => Some(config.image_text_hidden_size),
        ModelClass::Base => Some(config.projection_dim),
        ModelClass::ConditionalGeneration
        | ModelClass::QuestionAnswering
        | ModelClass::Vision
        | ModelClass::Text => None,
    }
}

fn multimodal_dimensions(config: &BlipConfig, class: ModelClass) -> Option<usize> {
    match class {
        ModelClass::ImageTextRetrieval => Some(config.text_config.hidden_size),
        ModelClass::Base => Some(config.projection_dim),
        ModelClass::ConditionalGeneration
        | ModelClass::QuestionAnswering
        | ModelClass::Vision
        | ModelClass::Text => None,
    }
}

fn logit_scale(weights: &CheckpointWeights, class: ModelClass) -> Result<Option<f32>, LoadError> {
    if class != ModelClass::Base {
        return Ok(None);
    }
    let scale = weights.get("logit_scale", &[])?;
    let scale = scale.to_dtype(DType::F32).and_then(|scale| scale.to_scalar::<f32>());
    Ok(Some(scale.map_err(|error| LoadError::Backend(error.into()))?.exp()))
}

impl Placement {
    /// Returns candle's operations in this number format, on the CPU.
    ///
    /// # Errors
    /// When the device is not the CPU, or candle does not support the format.
    pub fn candle_ops(self) -> Result<CandleOps, LoadError> {
        let refuse = |detail: String| LoadError::Device { device: self.device.to_string(), detail };
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::Int8 => return Err(refuse("int8 runs on CPUs only".to_owned())),
        };
        match self.device {
            Device::Cpu => Ok(CandleOps::new(candle_core::Device::Cpu, dtype)),
            Device::Cuda(_) => Err(refuse("candle runs models on CPUs only".to_owned())),
        }
    }
}
