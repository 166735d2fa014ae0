//! The interface between the engine and the models: what the worker thread calls to compute.
//!
//! No tensor and no logits cross it. `model` implements it for BLIP, tests use a scripted fake. What a decoder keeps
//! for an image (KV cache, search state) is the backend's own business.

use crate::task::{
    Embedding, GenerationParams, ModelId, ModelInfo, Pixels, Sequence, TokenIds, TokenLogprob,
    TowerId,
};

/// Computes work units. A backend lives on one worker thread; its calls never overlap.
pub trait Backend {
    /// Encoder states that a text tower attends to: an image's features or a question's hidden states. Clones are cheap
    /// and share the data.
    type EncoderStates: Clone;
    /// One sequence, or the beams of one beam search, with its search state and KV cache.
    type Group;

    /// The loaded models; `ModelId(i)` is at index i.
    fn models(&self) -> &[ModelInfo];

    /// Size in bytes of one image's features from this tower.
    fn feature_bytes(&self, tower: TowerId) -> u64;

    /// Bytes of cross-attention KV cache for one image of this model, shared by all decoding rows of that image. Zero
    /// for models that decode from question states.
    fn cross_kv_bytes(&self, model: ModelId) -> u64;

    /// Bytes of KV cache per token of a decoding row. Tokens are the row's own (prompt and generated) and those of the
    /// question that it attends to.
    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64;

    /// Encodes images of the tower's input size. Returns one result per image, in order.
    ///
    /// # Errors
    /// See [`BackendError`]. A failed call has no effect.
    fn encode(
        &mut self,
        tower: TowerId,
        images: &[&Pixels],
    ) -> Result<Vec<Self::EncoderStates>, BackendError>;

    /// Runs rows that need a single pass through a text tower. Returns one output per row, in order.
    ///
    /// # Errors
    /// See [`BackendError`]. A failed call has no effect.
    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<Self::EncoderStates>],
    ) -> Result<Vec<SinglePassOutput<Self::EncoderStates>>, BackendError>;

    /// Prepares a group without computing anything. Its first [`step`](Self::step) is the prefill, which runs the
    /// prompt.
    fn open(&mut self, spec: GroupSpec<Self::EncoderStates>) -> Self::Group;

    /// Tokens that the group's next step runs: first the prompt's, later one for each live row.
    fn pending_tokens(&self, group: &Self::Group) -> usize;

    /// Advances every group by one decode step. All groups belong to `model`. Returns one event per group, in order.
    ///
    /// All or nothing: after an error or a panic every group is as before the call, so the caller may run the halves
    /// again to find the group at fault.
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
pub enum SinglePassRow<M> {
    /// VQA: encodes the question with cross-attention to the image. The output is what its answers attend to.
    EncodeQuestion {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] question [SEP]`.
        question: TokenIds,
    },
    /// VQA: scores one candidate answer in full.
    ScoreCandidate {
        /// Hidden states of the encoded question.
        question: M,
        /// Token ids, `[CLS] candidate [SEP]`.
        candidate: TokenIds,
    },
    /// Retrieval: the probability that this text describes this image.
    MatchPair {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
    },
    /// Retrieval: projects the image into the shared embedding space.
    EmbedImage {
        /// Features of the image to project.
        image: M,
    },
    /// Retrieval: projects the text into the shared embedding space.
    EmbedText {
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
    },
    /// Retrieval: the text encoder's state with cross-attention to the image.
    EmbedMultimodal {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
    },
}

impl<M> SinglePassRow<M> {
    /// Tokens that the row runs through its tower; 0 for the projection of an image.
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

/// Output of a [`SinglePassRow`].
#[derive(Debug, Clone)]
pub enum SinglePassOutput<M> {
    /// The question's hidden states, for `EncodeQuestion`.
    EncoderStates(M),
    /// For `ScoreCandidate`: the summed natural log-probability of the candidate's tokens and `[SEP]`.
    Logprob(f32),
    /// For `MatchPair`: the probability of "match", 0..=1.
    Probability(f32),
    /// For the `Embed*` rows: the raw vector, not normalised.
    Embedding(Embedding),
}

/// What a new group decodes, and how.
#[derive(Debug, Clone)]
pub struct GroupSpec<M> {
    /// The model whose decoder runs.
    pub model: ModelId,
    /// The image's features (caption) or the question's hidden states (VQA).
    pub memory: M,
    /// Token ids of a caption prompt, `[CLS] prompt [SEP]`.
    pub prompt: Option<TokenIds>,
    /// Decoding parameters. When sampling, this group is one of the sequences to draw.
    pub params: GenerationParams,
    /// Index (0-based) among the sequences to draw; 0 unless sampling.
    pub sequence: usize,
}

/// What one step did to one group.
#[derive(Debug, Clone, PartialEq)]
pub struct StepEvent {
    /// The token that a single-sequence group appended. `None` for beam search, whose tokens are not final yet.
    pub token: Option<TokenLogprob>,
    /// Tokens that this step generated, one per row that advanced; for the counters.
    pub generated: usize,
    /// The group's sequences, best first, if this step was its last.
    pub finished: Option<Vec<Sequence>>,
}

/// Why a call failed. The texts are for logs; clients never see them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The device or a kernel failed.
    #[error("device error: {0}")]
    Device(String),
    /// The device is out of memory. A smaller work unit may succeed.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// An output contains NaN or infinity.
    #[error("non-finite values in {0}")]
    NonFinite(&'static str),
}
