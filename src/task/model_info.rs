//! Describes a loaded model, without its tensors. `/info` reports these facts; `http` and `engine` use them to check
//! and plan requests.

use super::Preprocessing;

/// Index of a loaded model, in configuration order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub usize);

/// Index of a vision tower. Models with byte-identical vision weights share a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TowerId(pub usize);

/// What a vision tower computes for an image: its last hidden state, or an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VisionOutput {
    /// The tower that runs.
    pub tower: TowerId,
    /// Index in transformers' `hidden_states`, 0 for the embeddings; `None` for `last_hidden_state`, after the final layer
    /// norm.
    pub layer: Option<u16>,
}

impl VisionOutput {
    /// Returns the last hidden state of this tower.
    #[must_use]
    pub fn last(tower: TowerId) -> Self {
        Self { tower, layer: None }
    }
}

/// The endpoint family that a model serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Models for `/caption`: they generate captions.
    Caption,
    /// Models for `/vqa`: they answer questions.
    Vqa,
    /// Models for `/similarity` and `/embeddings`.
    Retrieval,
}

impl Role {
    /// All roles, in the order of the enum.
    pub const ALL: [Self; 3] = [Self::Caption, Self::Vqa, Self::Retrieval];

    /// Returns the lower-case name used on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Vqa => "vqa",
            Self::Retrieval => "retrieval",
        }
    }
}

/// The model class in transformers, as listed in `architectures` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelClass {
    /// `BlipForConditionalGeneration`, which generates captions.
    ConditionalGeneration,
    /// `BlipForQuestionAnswering`, which answers questions about images.
    QuestionAnswering,
    /// `BlipForImageTextRetrieval`, with projections and a matching head.
    ImageTextRetrieval,
    /// `BlipModel`, with projections and a logit scale.
    Base,
    /// `BlipVisionModel`, a vision tower alone.
    Vision,
    /// `BlipTextModel`, a text encoder alone.
    Text,
}

impl ModelClass {
    /// All classes, in the order of the enum.
    pub const ALL: [Self; 6] = [
        Self::ConditionalGeneration,
        Self::QuestionAnswering,
        Self::ImageTextRetrieval,
        Self::Base,
        Self::Vision,
        Self::Text,
    ];

    /// Returns the name of the class in transformers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ConditionalGeneration => "BlipForConditionalGeneration",
            Self::QuestionAnswering => "BlipForQuestionAnswering",
            Self::ImageTextRetrieval => "BlipForImageTextRetrieval",
            Self::Base => "BlipModel",
            Self::Vision => "BlipVisionModel",
            Self::Text => "BlipTextModel",
        }
    }

    /// Returns the endpoint family that a model of this class serves.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::ConditionalGeneration => Role::Caption,
            Self::QuestionAnswering => Role::Vqa,
            Self::ImageTextRetrieval | Self::Base | Self::Vision | Self::Text => Role::Retrieval,
        }
    }

    /// True if a model of this class is a single tower. It has hidden states, but no projection, so it serves
    /// `/embeddings` alone.
    #[must_use]
    pub fn is_single_tower(self) -> bool {
        matches!(self, Self::Vision | Self::Text)
    }

    /// True if the class projects images and texts into a shared vector space.
    #[must_use]
    pub fn has_projection(self) -> bool {
        matches!(self, Self::ImageTextRetrieval | Self::Base)
    }

    /// True if the class has a text encoder, which reads a text as a whole.
    #[must_use]
    pub fn has_text_encoder(self) -> bool {
        !matches!(self, Self::ConditionalGeneration | Self::Vision)
    }

    /// True if the class has an image-text matching head, which computes `match`.
    #[must_use]
    pub fn has_matching_head(self) -> bool {
        self == Self::ImageTextRetrieval
    }
}

/// The number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floating point, the reference.
    F32,
    /// 16-bit brain floating point (bfloat16).
    Bf16,
    /// 16-bit IEEE floating point (half precision).
    F16,
    /// 8-bit quantization of weights and activation rows where that is accurate enough, bf16 elsewhere.
    Int8,
}

impl Dtype {
    /// Returns the lower-case name used in settings and on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// The device on which a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// The CPU of this machine.
    Cpu,
    /// The NVIDIA GPU with this ordinal.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Dimensions of the hidden states of a tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatesShape {
    /// Number of layers. There is one more hidden state than layers, because the first are the embeddings.
    pub layers: usize,
    /// Number of values of one token's state.
    pub width: usize,
}

/// Facts about the vision tower of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionInfo {
    /// Index of the tower, which may be shared with other models.
    pub tower: TowerId,
    /// Image size and resampling filter that the tower expects.
    pub preprocessing: Preprocessing,
    /// Layers of the tower, and the width of its hidden states.
    pub states: StatesShape,
    /// Number of tokens per image, to which the text towers attend: 577 for 384 px with patches of 16 px.
    pub tokens: usize,
}

/// Facts about the text towers of a model, which have the same configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct TextInfo {
    /// Layers of each text tower, and the width of its hidden states.
    pub states: StatesShape,
    /// Maximum number of tokens in a text, including special and generated ones (`max_position_embeddings`).
    pub max_tokens: usize,
    /// True if the model pools the `[CLS]` state of its text encoder (`pooler_output`). A `BlipModel` does, and so does a
    /// `BlipTextModel`, unless it was built without the pooling layer.
    pub has_pooler: bool,
}

/// Facts about one loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Index of this model among the loaded models.
    pub id: ModelId,
    /// The name that requests use for the model.
    pub name: String,
    /// The model's class in transformers.
    pub class: ModelClass,
    /// Hugging Face hub id or directory, as configured.
    pub source: String,
    /// Revision on the hub, if the model was loaded from the hub.
    pub revision: Option<String>,
    /// Number format of the model's weights and activations.
    pub dtype: Dtype,
    /// The device on which the model runs.
    pub device: Device,
    /// The model's vision tower; `None` only for a `BlipTextModel`.
    pub vision: Option<VisionInfo>,
    /// The model's text towers; `None` only for a `BlipVisionModel`.
    pub text: Option<TextInfo>,
    /// Length of image and text embeddings; only for classes with projections.
    pub embedding_dimensions: Option<usize>,
    /// Length of multimodal embeddings; only for classes with projections.
    pub multimodal_dimensions: Option<usize>,
    /// `exp(logit_scale)` of a `BlipModel`, the factor that converts a cosine to a logit.
    pub logit_scale: Option<f32>,
    /// Number of parameters; a shared tower counts for each model that uses it.
    pub parameter_count: u64,
    /// True for the demo models that are built into the binary.
    pub demo: bool,
}

impl ModelInfo {
    /// Returns the endpoint family that the model serves.
    #[must_use]
    pub fn role(&self) -> Role {
        self.class.role()
    }

    /// Returns the index of the model's vision tower, if it has one.
    #[must_use]
    pub fn tower(&self) -> Option<TowerId> {
        self.vision.as_ref().map(|vision| vision.tower)
    }

    /// Returns how the model's images are prepared, if it has a vision tower.
    #[must_use]
    pub fn preprocessing(&self) -> Option<Preprocessing> {
        self.vision.as_ref().map(|vision| vision.preprocessing)
    }

    /// Returns the vision tower of a model that has one. Requests with images that name a model without a vision tower
    /// are refused before they need it.
    ///
    /// # Panics
    /// If the model is a `BlipTextModel`.
    #[must_use]
    pub fn vision_tower(&self) -> &VisionInfo {
        self.vision.as_ref().expect("every class with images has a vision tower")
    }

    /// Returns the text towers of a model that has any. Requests with texts that name a model without a text tower are
    /// refused before they need it.
    ///
    /// # Panics
    /// If the model is a `BlipVisionModel`.
    #[must_use]
    pub fn text_towers(&self) -> &TextInfo {
        self.text.as_ref().expect("every class with texts has a text tower")
    }
}
