//! The types that all folders share: the tasks for a model, their inputs, and their outputs.
//!
//! They are plain data without I/O, tensors or HTTP: this folder imports nothing but `std`. `http` builds these values
//! from requests, `engine` plans and schedules them, and `model` computes the outputs.

mod embedding;
mod generation;
mod image;
mod kind;
mod model_info;
mod scored;
mod shape;
mod stop_strings;
mod text;
mod timing;

pub use embedding::{Embedding, ZeroNorm};
pub use generation::{
    Cutoffs, EarlyStopping, ExponentialDecay, FinishReason, GenerationParams, PatchWeights,
    Sequence, Strategy, TokenLogprob,
};
pub use image::{
    ImageFormat, ImageId, ImageInfo, ParseImageIdError, Pixels, PreparedImage, Preprocessing,
    Resample, Scope,
};
pub use kind::TaskKind;
pub use model_info::{
    Device, Dtype, ModelClass, ModelId, ModelInfo, Role, StatesShape, TextInfo, TowerId,
    VisionInfo, VisionOutput,
};
pub use scored::{MatchLogits, ScoredText};
pub use shape::TaskShape;
pub use stop_strings::{StopStrings, TokenTexts};
pub use text::TokenIds;
pub use timing::{StageRun, TaskRun, TaskTiming};

use std::sync::Arc;

/// A piece of inference that a client requests: a single call, or one item of a batch call.
#[derive(Debug, Clone)]
pub enum Task {
    /// Describe an image, freely or by continuing a prompt.
    Caption(Caption),
    /// Answer questions about one image.
    Vqa(Vqa),
    /// Score every image against every text.
    Similarity(Similarity),
    /// Compute states of an image, a text, or both together.
    Embed(Embed),
}

/// A request to caption one image.
#[derive(Debug, Clone)]
pub struct Caption {
    /// The prepared image to describe.
    pub image: PreparedImage,
    /// Token ids `[CLS] prompt [SEP]`. The model replaces `[CLS]` with its own start token and drops `[SEP]`. `None` if
    /// candidates are ranked.
    pub prompt: Option<TokenIds>,
    /// Whether captions are generated or given ones ranked.
    pub mode: DecodeMode,
    /// Whether the caption is explained; only for one generated sequence without beam search.
    pub explain: Option<Explain>,
}

/// Questions about one image, which is encoded once for all of them.
#[derive(Debug, Clone)]
pub struct Vqa {
    /// The prepared image that the questions are about.
    pub image: PreparedImage,
    /// Token ids of each question, `[CLS] question [SEP]`; at least one question.
    pub questions: Vec<TokenIds>,
    /// Whether answers are generated or given ones ranked.
    pub mode: DecodeMode,
    /// Whether the model's reading of the questions is explained.
    pub explain: Option<Explain>,
}

/// The text layers whose cross-attention to the image is averaged for an explanation; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explain(pub Arc<[u16]>);

/// The output for one question of a [`Vqa`] task.
#[derive(Debug, Clone, PartialEq)]
pub struct QuestionOutput {
    /// The answers, or the scores of the candidates.
    pub decoded: Decoded,
    /// For each token of the question, the weights with which it attended to the patches of the image. Only if an
    /// explanation was requested.
    pub attention: Option<Vec<PatchWeights>>,
}

/// What a decoder does: it generates texts, or scores given ones.
#[derive(Debug, Clone)]
pub enum DecodeMode {
    /// Generate texts with these parameters.
    Generate(GenerationParams),
    /// Compute the log-probability of each candidate (token ids `[CLS] candidate [SEP]`); nothing is generated.
    Rank(Vec<TokenIds>),
}

/// Similarity of every image with every text.
#[derive(Debug, Clone)]
pub struct Similarity {
    /// Prepared images, the rows of the answer.
    pub images: Vec<PreparedImage>,
    /// Token ids of each text, `[CLS] text [SEP]`; the columns of the answer.
    pub texts: Vec<TokenIds>,
    /// The kinds of scores to compute.
    pub scores: Scores,
}

/// Which scores a [`Similarity`] task computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    /// The image-text matching head's probability; needs one text pass per pair.
    pub matching: bool,
    /// The image-text matching head's raw outputs, from the same text pass.
    pub match_logits: bool,
    /// The dot product of the normalised projections, and the logit for models that have a logit scale.
    pub cosine: bool,
}

impl Scores {
    /// True if each image-text pair must run through the matching head.
    #[must_use]
    pub fn needs_pairs(self) -> bool {
        self.matching || self.match_logits
    }
}

/// An embedding or hidden states to compute.
#[derive(Debug, Clone)]
pub struct Embed {
    /// What is encoded.
    pub subject: EmbedSubject,
    /// Which of the encoder's states are returned, and how.
    pub output: EmbedOutput,
}

/// What an [`Embed`] task encodes.
#[derive(Debug, Clone)]
pub enum EmbedSubject {
    /// The image, by the vision tower.
    Image(PreparedImage),
    /// The text (`[CLS] text [SEP]`), by the text encoder.
    Text(TokenIds),
    /// The text, by the text encoder with cross-attention to the image.
    Multimodal(PreparedImage, TokenIds),
}

/// Which states of an encoder an [`Embed`] task returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedOutput {
    /// How the states of all tokens become the answer.
    pub pooling: Pooling,
    /// Index in transformers' `hidden_states`, 0 for the embeddings; `None` for `last_hidden_state`. `None` for
    /// `Projection` and `Pooler`.
    pub layer: Option<u16>,
}

impl EmbedOutput {
    /// The projection of the last hidden state.
    pub const PROJECTION: Self = Self { pooling: Pooling::Projection, layer: None };
}

/// How the states of all tokens become the answer of an [`Embed`] task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The projection into the space shared by images and texts; for multimodal embeddings of a retrieval model, the
    /// `[CLS]` state, which has no projection.
    Projection,
    /// The state of the first token.
    Cls,
    /// The mean over all tokens.
    Mean,
    /// transformers' `pooler_output`.
    Pooler,
    /// The states of all tokens, row-major.
    None,
}

/// The answer to a [`Task`]. Its variant always matches the task's.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskOutput {
    /// The captions of the image.
    Caption(Decoded),
    /// The answers to each question, in the order of the questions.
    Vqa(Vec<QuestionOutput>),
    /// Scores of image i and text j in `cells[i][j]`.
    Similarity(Vec<Vec<SimilarityCell>>),
    /// The raw vector, not normalised; the states of all tokens, row-major, for [`Pooling::None`].
    Embed(Embedding),
}

/// What a decoder computed for a caption or for one question; see [`DecodeMode`].
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// Generated sequences, best first (beam search) or in the order drawn (samples).
    Generated(Vec<Sequence>),
    /// The scores of the candidates, in their order.
    Ranked(Vec<ScoredText>),
}

impl Decoded {
    /// Returns the number of generated tokens, over all sequences.
    #[must_use]
    pub fn generated_tokens(&self) -> usize {
        match self {
            Self::Generated(sequences) => sequences.iter().map(|s| s.tokens.len()).sum(),
            Self::Ranked(_) => 0,
        }
    }
}

/// The scores of one image and one text. A score is `None` if it was not requested or the model cannot compute it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimilarityCell {
    /// Matching head's probability of "match", 0..=1.
    pub matching: Option<f32>,
    /// The matching head's raw outputs.
    pub match_logits: Option<MatchLogits>,
    /// Cosine similarity of the projections, -1..=1.
    pub cosine: Option<f32>,
    /// `exp(logit_scale) * cosine`, for models that have a logit scale.
    pub logit: Option<f32>,
}
