//! The seam between service and model: what the worker thread asks of whoever computes.
//!
//! No tensor and no logits cross it. `model` implements it for BLIP, tests with a scripted fake.
//! What a decoder keeps for an image (keys, values, search state) is the backend's own business.

use crate::task::{
    Embedding, GenerationParams, ModelId, ModelInfo, Pixels, Sequence, TokenIds, TokenLogprob,
    TowerId,
};

/// Computes units of work. One value lives on one worker thread; calls never overlap.
pub trait Backend {
    /// What a text tower attends to: an image's features, or a question's states. Clones are cheap and share.
    type Memory: Clone;
    /// One sequence, or one beam set, with its search state and caches.
    type Group;

    /// The loaded models; `ModelId(i)` is the i-th.
    fn models(&self) -> &[ModelInfo];

    /// Bytes that the features of one image of this tower occupy.
    fn feature_bytes(&self, tower: TowerId) -> u64;

    /// Bytes of cross-attention keys and values that decoding rows of one image of this model hold,
    /// shared by all rows of that image; zero for models that decode from question states.
    fn cross_kv_bytes(&self, model: ModelId) -> u64;

    /// Bytes of keys and values per token of a decoding row: its own tokens (prompt and new ones), and the tokens
    /// of a question that it attends to.
    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64;

    /// Encodes images of the tower's input size; one result per image, in order.
    ///
    /// # Errors
    /// See [`BackendError`]; nothing is kept of a failed call.
    fn encode(
        &mut self,
        tower: TowerId,
        images: &[&Pixels],
    ) -> Result<Vec<Self::Memory>, BackendError>;

    /// Runs rows that need a single pass; one output per row, in order.
    ///
    /// # Errors
    /// See [`BackendError`]; nothing is kept of a failed call.
    fn score(
        &mut self,
        model: ModelId,
        rows: &[OnePassRow<Self::Memory>],
    ) -> Result<Vec<OnePassOutput<Self::Memory>>, BackendError>;

    /// Prepares a group; its first [`step`](Self::step) runs the prompt. Computes nothing.
    fn open(&mut self, spec: GroupSpec<Self::Memory>) -> Self::Group;

    /// Tokens that the group's next step runs: the prompt's at first, then its live rows.
    fn pending_tokens(&self, group: &Self::Group) -> usize;

    /// Advances every group by one step; all groups belong to `model`. One event per group, in order.
    /// All or nothing: after an error or a panic every group is as it was, so the caller may run
    /// the halves again to find the one at fault.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut Self::Group],
    ) -> Result<Vec<StepEvent>, BackendError>;
}

/// A row that needs a single pass of one text tower.
#[derive(Debug, Clone)]
pub enum OnePassRow<M> {
    /// VQA: the question, attending to the image; gives the memory of its answers.
    EncodeQuestion {
        /// The image's features.
        image: M,
        /// `[CLS] question [SEP]`.
        question: TokenIds,
    },
    /// VQA: a candidate answer scored in full.
    ScoreCandidate {
        /// The question's states.
        question: M,
        /// `[CLS] candidate [SEP]`.
        candidate: TokenIds,
    },
    /// Retrieval: does this text describe this image?
    MatchPair {
        /// The image's features.
        image: M,
        /// `[CLS] text [SEP]`.
        text: TokenIds,
    },
    /// Retrieval: the image's projection.
    EmbedImage {
        /// The image's features.
        image: M,
    },
    /// Retrieval: the text's projection.
    EmbedText {
        /// `[CLS] text [SEP]`.
        text: TokenIds,
    },
    /// Retrieval: the text encoder's state while it attends to the image.
    EmbedMultimodal {
        /// The image's features.
        image: M,
        /// `[CLS] text [SEP]`.
        text: TokenIds,
    },
}

impl<M> OnePassRow<M> {
    /// Tokens that the row runs through its tower (0 for an image's projection).
    #[must_use]
    pub fn tokens(&self) -> usize {
        match self {
            Self::EncodeQuestion { question: text, .. }
            | Self::ScoreCandidate { candidate: text, .. }
            | Self::MatchPair { text, .. }
            | Self::EmbedText { text }
            | Self::EmbedMultimodal { text, .. } => text.len(),
            Self::EmbedImage { .. } => 0,
        }
    }
}

/// What a [`OnePassRow`] gives.
#[derive(Debug, Clone)]
pub enum OnePassOutput<M> {
    /// Of `EncodeQuestion`.
    Memory(M),
    /// Of `ScoreCandidate`: the summed natural log-probability of its tokens and `[SEP]`.
    Logprob(f32),
    /// Of `MatchPair`: the probability of "match".
    Probability(f32),
    /// Of the `Embed*` rows: the raw vector.
    Embedding(Embedding),
}

/// What a new group generates.
#[derive(Debug, Clone)]
pub struct GroupSpec<M> {
    /// The model whose decoder runs.
    pub model: ModelId,
    /// The image's features (caption) or the question's states (VQA).
    pub memory: M,
    /// `[CLS] prompt [SEP]` of a caption prompt.
    pub prompt: Option<TokenIds>,
    /// How to generate. With sampling, the group is one of the sequences drawn.
    pub params: GenerationParams,
    /// Which of the sequences drawn (0-based); 0 without sampling.
    pub sequence: usize,
}

/// What one step did to one group.
#[derive(Debug, Clone, PartialEq)]
pub struct StepEvent {
    /// The token that a single-sequence group appended; `None` for beams, whose tokens are not final yet.
    pub token: Option<TokenLogprob>,
    /// Tokens that this step generated (rows that advanced), for the counters.
    pub generated: usize,
    /// The group's sequences, best first, when this step was its last.
    pub finished: Option<Vec<Sequence>>,
}

/// Why a call failed. Texts are for logs; clients never see them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The device or a kernel failed.
    #[error("device error: {0}")]
    Device(String),
    /// The device has no memory left; smaller units may succeed.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// An output is NaN or infinite.
    #[error("non-finite values in {0}")]
    NonFinite(&'static str),
}
