//! The types that all folders share: the tasks for a model, their inputs, and their outputs.
//!
//! They are plain data without I/O, tensors or HTTP: this folder imports nothing but `std`. `http` builds these values
//! from requests, `engine` plans and schedules them, and `model` computes the outputs.

mod embedding;
mod generation;
mod image;
mod kind;
mod model_info;
mod shape;
mod text;

pub use embedding::{Embedding, ZeroNorm};
pub use generation::{
    EarlyStopping, FinishReason, GenerationParams, Sequence, Strategy, TokenLogprob,
};
pub use image::{
    ImageFormat, ImageId, ImageInfo, ParseImageIdError, Pixels, PreparedImage, Preprocessing,
    Resample, Scope,
};
pub use kind::TaskKind;
pub use model_info::{Device, Dtype, ModelClass, ModelId, ModelInfo, Role, TowerId};
pub use shape::TaskShape;
pub use text::TokenIds;

use std::time::Duration;

/// A piece of inference that a client requests: a single call, or one item of a batch call.
#[derive(Debug, Clone)]
pub enum Task {
    /// Describe an image, freely or by continuing a prompt.
    Caption(Caption),
    /// Answer questions about one image.
    Vqa(Vqa),
    /// Score every image against every text.
    Similarity(Similarity),
    /// Embed an image, a text, or both together as a vector.
    Embed(Embed),
}

/// A request to caption one image.
#[derive(Debug, Clone)]
pub struct Caption {
    /// The prepared image to describe.
    pub image: PreparedImage,
    /// Token ids `[CLS] prompt [SEP]`. The model replaces `[CLS]` with its own start token and drops `[SEP]`.
    pub prompt: Option<TokenIds>,
    /// Decoding parameters of the caption.
    pub params: GenerationParams,
}

/// Questions about one image, which is encoded once for all of them.
#[derive(Debug, Clone)]
pub struct Vqa {
    /// The prepared image that the questions are about.
    pub image: PreparedImage,
    /// Token ids of each question, `[CLS] question [SEP]`; at least one question.
    pub questions: Vec<TokenIds>,
    /// How each question is answered.
    pub mode: VqaMode,
}

/// How the questions of a [`Vqa`] task are answered.
#[derive(Debug, Clone)]
pub enum VqaMode {
    /// Generate an answer with these parameters.
    Generate(GenerationParams),
    /// Compute the log-probability of each candidate answer (token ids `[CLS] candidate [SEP]`); nothing is generated.
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
    /// The dot product of the normalised projections, and the logit for models that have a logit scale.
    pub cosine: bool,
}

/// What to embed as one vector.
#[derive(Debug, Clone)]
pub enum Embed {
    /// Project the image into the embedding space shared with texts.
    Image(PreparedImage),
    /// Project the text (`[CLS] text [SEP]`) into the embedding space shared with images.
    Text(TokenIds),
    /// Compute the text encoder's `[CLS]` state with cross-attention to the image.
    Multimodal(PreparedImage, TokenIds),
}

/// The answer to a [`Task`]. Its variant always matches the task's.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskOutput {
    /// Sequences, best first (beam search) or in the order drawn (samples).
    Caption(Vec<Sequence>),
    /// One answer per question, in order.
    Vqa(Vec<Answer>),
    /// Scores of image i and text j in `cells[i][j]`.
    Similarity(Vec<Vec<SimilarityCell>>),
    /// The raw vector, not normalised.
    Embed(Embedding),
}

/// The answer to one question of a [`Vqa`] task.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Generated sequences, best first or in the order drawn.
    Generated(Vec<Sequence>),
    /// Summed natural log-probability of each candidate's tokens and `[SEP]`, in the order of the candidates.
    Ranked(Vec<f32>),
}

/// The scores of one image and one text. A score is `None` if it was not requested or the model cannot compute it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimilarityCell {
    /// Matching head's probability of "match", 0..=1.
    pub matching: Option<f32>,
    /// Cosine similarity of the projections, -1..=1.
    pub cosine: Option<f32>,
    /// `exp(logit_scale) * cosine`, for models that have a logit scale.
    pub logit: Option<f32>,
}

/// How long an answered task waited and how long its work took, as measured by the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskTiming {
    /// Time from submission to the start of the task's first work unit.
    pub queue: Duration,
    /// Total time of the vision batches that the task took part in; zero if its features were cached.
    pub vision: Duration,
    /// Total time of the text units that the task took part in.
    pub text: Duration,
}
