//! The vocabulary that every folder shares: what can be asked of a model, with what, and what comes back.
//!
//! Plain data only. No I/O, no tensor, no HTTP: this folder imports nothing but `std`.
//! `http` builds these values from requests, `engine` plans and times them, `model` computes them.

mod embedding;
mod generation;
mod image;
mod model_info;
mod text;

pub use embedding::{Embedding, ZeroNorm};
pub use generation::{
    EarlyStopping, FinishReason, GenerationParams, Sequence, Strategy, TokenLogprob,
};
pub use image::{
    ImageFormat, ImageId, ImageInfo, ParseImageIdError, Pixels, PreparedImage, Preprocessing,
    Resample, Scope,
};
pub use model_info::{Device, Dtype, ModelClass, ModelId, ModelInfo, Role, TowerId};
pub use text::TokenIds;

use std::time::Duration;

/// One unit of a client's intent: an item of a batch call, or a single call.
#[derive(Debug, Clone)]
pub enum Task {
    /// Describe an image, from nothing or from a prompt.
    Caption(Caption),
    /// Answer questions about one image.
    Vqa(Vqa),
    /// Score every image against every text.
    Similarity(Similarity),
    /// Turn an image, a text, or both into a vector.
    Embed(Embed),
}

/// A caption wanted for one image.
#[derive(Debug, Clone)]
pub struct Caption {
    /// The image, ready for the vision tower.
    pub image: PreparedImage,
    /// `[CLS] prompt [SEP]`; the model puts its own start token in place of `[CLS]` and drops `[SEP]`.
    pub prompt: Option<TokenIds>,
    /// How to generate.
    pub params: GenerationParams,
}

/// Questions about one image; one vision pass serves them all.
#[derive(Debug, Clone)]
pub struct Vqa {
    /// The image, ready for the vision tower.
    pub image: PreparedImage,
    /// `[CLS] question [SEP]` each; at least one.
    pub questions: Vec<TokenIds>,
    /// What to do with each question.
    pub mode: VqaMode,
}

/// How a question is answered.
#[derive(Debug, Clone)]
pub enum VqaMode {
    /// Generate an answer.
    Generate(GenerationParams),
    /// Score each candidate in full (`[CLS] candidate [SEP]` each); nothing is generated.
    Rank(Vec<TokenIds>),
}

/// Every image against every text.
#[derive(Debug, Clone)]
pub struct Similarity {
    /// Images, rows of the answer.
    pub images: Vec<PreparedImage>,
    /// `[CLS] text [SEP]` each, columns of the answer.
    pub texts: Vec<TokenIds>,
    /// Which scores are wanted.
    pub scores: Scores,
}

/// Which scores a [`Similarity`] task computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    /// The matching head's probability, one text pass per pair.
    pub matching: bool,
    /// The dot product of the normalised projections (and the logit, where the model has a scale).
    pub cosine: bool,
}

/// One vector.
#[derive(Debug, Clone)]
pub enum Embed {
    /// The image's projection.
    Image(PreparedImage),
    /// The text's projection.
    Text(TokenIds),
    /// The text encoder's `[CLS]` state while it attends to the image.
    Multimodal(PreparedImage, TokenIds),
}

/// What a [`Task`] answers; the variant always equals the task's.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskOutput {
    /// Best first (beams) or in the order drawn (samples).
    Caption(Vec<Sequence>),
    /// One per question, in order.
    Vqa(Vec<Answer>),
    /// `cells[i][j]`: image i, text j.
    Similarity(Vec<Vec<SimilarityCell>>),
    /// The raw (not normalised) vector.
    Embed(Embedding),
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Generated sequences, best first or in the order drawn.
    Generated(Vec<Sequence>),
    /// For each candidate, in the order given, the summed natural log-probability of its tokens and `[SEP]`.
    Ranked(Vec<f32>),
}

/// The scores of one image and one text; absent where not asked or not available.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimilarityCell {
    /// Probability of "match" in 0..=1.
    pub matching: Option<f32>,
    /// Cosine in -1..=1.
    pub cosine: Option<f32>,
    /// `exp(logit_scale) * cosine`, for models that have a logit scale.
    pub logit: Option<f32>,
}

/// Where an answered task's time went, seen from the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskTiming {
    /// From submission to the start of its first unit.
    pub queue: Duration,
    /// Sum of the vision units that it took part in (zero when its features were cached).
    pub vision: Duration,
    /// Sum of the text units that it took part in.
    pub text: Duration,
}

impl Task {
    /// Rows that the task occupies in the engine, as `engine.md` counts them:
    /// sequences x beams, questions x (beams or candidates), pairs, texts; at least 1.
    #[must_use]
    pub fn rows(&self) -> usize {
        let rows = match self {
            Self::Caption(caption) => caption.params.rows(),
            Self::Vqa(vqa) => {
                let each = match &vqa.mode {
                    VqaMode::Generate(params) => params.rows(),
                    VqaMode::Rank(candidates) => candidates.len(),
                };
                vqa.questions.len() * each
            }
            Self::Similarity(similarity) => {
                similarity_rows(similarity.images.len(), similarity.texts.len(), similarity.scores)
            }
            Self::Embed(_) => 1,
        };
        rows.max(1)
    }

    /// The images that the task needs, in order.
    #[must_use]
    pub fn images(&self) -> Vec<&PreparedImage> {
        match self {
            Self::Caption(caption) => vec![&caption.image],
            Self::Vqa(vqa) => vec![&vqa.image],
            Self::Similarity(similarity) => similarity.images.iter().collect(),
            Self::Embed(Embed::Image(image) | Embed::Multimodal(image, _)) => vec![image],
            Self::Embed(Embed::Text(_)) => Vec::new(),
        }
    }
}

/// Rows of a similarity call: pairs when matching is asked, texts (for the cosine) and nothing for images.
#[must_use]
pub fn similarity_rows(images: usize, texts: usize, scores: Scores) -> usize {
    let pairs = if scores.matching { images * texts } else { 0 };
    let encoded = if scores.cosine { texts } else { 0 };
    pairs + encoded
}
