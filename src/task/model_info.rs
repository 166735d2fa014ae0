//! What is known of a loaded model without touching a tensor; `/info` shows it, `http` and `engine` plan with it.

use super::Preprocessing;

/// Index of a loaded model, in the order of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub usize);

/// Index of a vision tower; models with byte-identical vision weights share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TowerId(pub usize);

/// The endpoint family that a model serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// `/caption`.
    Caption,
    /// `/vqa`.
    Vqa,
    /// `/similarity` and `/embeddings`.
    Retrieval,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Caption, Self::Vqa, Self::Retrieval];

    /// The lower-case name used on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Vqa => "vqa",
            Self::Retrieval => "retrieval",
        }
    }
}

/// The transformers class in `architectures` of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModelClass {
    /// `BlipForConditionalGeneration`.
    ConditionalGeneration,
    /// `BlipForQuestionAnswering`.
    QuestionAnswering,
    /// `BlipForImageTextRetrieval`.
    ImageTextRetrieval,
    /// `BlipModel`.
    Base,
}

impl ModelClass {
    /// Every class.
    pub const ALL: [Self; 4] = [
        Self::ConditionalGeneration,
        Self::QuestionAnswering,
        Self::ImageTextRetrieval,
        Self::Base,
    ];

    /// The class name in transformers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ConditionalGeneration => "BlipForConditionalGeneration",
            Self::QuestionAnswering => "BlipForQuestionAnswering",
            Self::ImageTextRetrieval => "BlipForImageTextRetrieval",
            Self::Base => "BlipModel",
        }
    }

    /// The endpoints that a model of this class serves.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::ConditionalGeneration => Role::Caption,
            Self::QuestionAnswering => Role::Vqa,
            Self::ImageTextRetrieval | Self::Base => Role::Retrieval,
        }
    }

    /// True where an image-text matching head gives `match`.
    #[must_use]
    pub fn has_matching_head(self) -> bool {
        self == Self::ImageTextRetrieval
    }
}

/// The number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats, the reference.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// 8-bit weights and rows where that is exact enough, bf16 elsewhere.
    Int8,
}

impl Dtype {
    /// The lower-case name used in settings and on the wire.
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

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its ordinal.
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

/// A loaded model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Its place among the loaded models.
    pub id: ModelId,
    /// The name that requests use.
    pub name: String,
    /// Its transformers class.
    pub class: ModelClass,
    /// Hub id or directory, as configured.
    pub source: String,
    /// The hub revision, where there is one.
    pub revision: Option<String>,
    /// Number format.
    pub dtype: Dtype,
    /// Where it runs.
    pub device: Device,
    /// Its vision tower.
    pub tower: TowerId,
    /// What its tower takes.
    pub preprocessing: Preprocessing,
    /// Image tokens that its text towers attend to (577 for 384 px and patches of 16).
    pub image_tokens: usize,
    /// Most tokens of a text, special ones and generated ones included (`max_position_embeddings`).
    pub max_text_tokens: usize,
    /// Size of image and text embeddings, for the retrieval role.
    pub embedding_dimensions: Option<usize>,
    /// Size of multimodal embeddings, for the retrieval role.
    pub multimodal_dimensions: Option<usize>,
    /// `exp(logit_scale)` of a `BlipModel`: what turns a cosine into a logit.
    pub logit_scale: Option<f32>,
    /// Parameters (weights), shared towers counted for each model.
    pub parameter_count: u64,
    /// True for the demo models inside the binary.
    pub demo: bool,
}

impl ModelInfo {
    /// The endpoints that it serves.
    #[must_use]
    pub fn role(&self) -> Role {
        self.class.role()
    }
}
