//! The interface between the engine and the models. The worker thread calls it to run work units.
//!
//! No tensor and no logits cross this interface. `model` implements it for BLIP, and tests use a scripted fake. The
//! state of a decoder (KV cache, search state) is internal to the backend.

use crate::task::{
    EmbedOutput, Embedding, Explain, GenerationParams, MatchLogits, ModelId, ModelInfo,
    PatchWeights, Pixels, Pooling, ScoredText, Sequence, TokenIds, TokenLogprob, TowerId,
    VisionOutput,
};

/// Computes work units. A backend lives on one worker thread; its calls never overlap.
pub trait Backend {
    /// Encoder states that a text tower attends to: an image's features or a question's hidden states. Clones are cheap
    /// and share the data.
    type EncoderStates: Clone;
    /// One sequence, or the beams of one beam search, with its search state and KV cache.
    type Group;

    /// Returns the loaded models; `ModelId(i)` is at index i.
    fn models(&self) -> &[ModelInfo];

    /// Returns the size in bytes of the features that this tower computes for one image.
    fn feature_bytes(&self, tower: TowerId) -> u64;

    /// Returns the size in bytes of this model's cross-attention KV cache for one image. All decoding rows of the image
    /// share that cache. Zero for models whose decoder attends to question states instead (VQA).
    fn cross_kv_bytes(&self, model: ModelId) -> u64;

    /// Returns the number of bytes of KV cache for each token of a decoding row. The row's own tokens (prompt and
    /// generated) count, and so do the tokens of the question that the row attends to.
    fn row_kv_bytes_per_token(&self, model: ModelId) -> u64;

    /// Returns how a device with memory of its own is used; `None` if the models run on the CPU. Called after every unit.
    fn device_usage(&self) -> Option<DeviceUsage> {
        None
    }

    /// Returns the number of equal units after which the next one takes its usual time. The first units may also load or
    /// compile what the later ones use.
    fn units_to_warm_up(&self) -> usize {
        0
    }

    /// Computes features of images of the tower's input size. Returns one result per image, in order.
    ///
    /// # Errors
    /// See [`BackendError`]. A failed call has no effect.
    fn encode(
        &mut self,
        output: VisionOutput,
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

    /// Returns the number of tokens that the group's next step processes: all tokens of the prompt in the first step,
    /// one for each live row in later steps.
    fn pending_tokens(&self, group: &Self::Group) -> usize;

    /// Advances every group by one decode step. All groups belong to `model`. Returns one event per group, in order.
    ///
    /// After an error or a panic, every group must be in the same state as before this call. The caller may then run
    /// each half of the groups again, to find the group at fault.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut Self::Group],
    ) -> Result<Vec<StepEvent>, BackendError>;
}

/// How a device with memory of its own is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Size of the memory in bytes.
    pub total_bytes: u64,
    /// Bytes allocated for weights, features, activations and KV caches.
    pub allocated_bytes: u64,
    /// Bytes of these that are in use.
    pub used_bytes: u64,
    /// Number of pages of KV caches that rows hold.
    pub kv_pages_used: usize,
    /// Number of pages of KV caches.
    pub kv_pages: usize,
    /// Number of passes that ran as one recorded graph so far.
    pub graph_launches: u64,
    /// Number of recorded graphs that could not be built, or were dropped because passes kept differing from them.
    pub lost_graphs: u64,
}

/// A row that needs only one pass through a text tower or, for `EmbedImage`, only a projection.
#[derive(Debug, Clone)]
pub enum SinglePassRow<M> {
    /// VQA: encodes the question with cross-attention to the image. The rows and groups that answer the question attend
    /// to the output.
    EncodeQuestion {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] question [SEP]`.
        question: TokenIds,
        /// True if the request has only this question about the image. A backend may then compute cross-attention in a
        /// form that pays off for few tokens. It follows from the request alone, so the result does not depend on other
        /// requests.
        is_only_text: bool,
        /// Whether the output includes attention weights.
        explain: Option<Explain>,
    },
    /// Caption and VQA: computes the log-probability of each token of one candidate text.
    ScoreCandidate {
        /// What the decoder attends to: the image's features (caption) or the question's hidden states (VQA).
        states: M,
        /// Token ids, `[CLS] candidate [SEP]`.
        candidate: TokenIds,
    },
    /// Retrieval: computes whether this text describes this image.
    MatchPair {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
        /// True if the request compares only this text with the image; see `EncodeQuestion`.
        is_only_text: bool,
    },
    /// Returns states of the image, or their projection into the shared embedding space.
    EmbedImage {
        /// Features of the image, of the layer that is wanted.
        image: M,
        /// How the features become the answer.
        pooling: Pooling,
    },
    /// Returns states of the text, or their projection into the shared embedding space.
    EmbedText {
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
        /// Which states of the text encoder are returned.
        output: EmbedOutput,
    },
    /// Returns states of the text with cross-attention to the image, or their projection.
    EmbedMultimodal {
        /// Features of the image that the row attends to.
        image: M,
        /// Token ids, `[CLS] text [SEP]`.
        text: TokenIds,
        /// Which states of the text encoder are returned.
        output: EmbedOutput,
    },
}

impl<M> SinglePassRow<M> {
    /// Returns the number of tokens that the row runs through its tower; 0 for the projection of an image.
    #[must_use]
    pub fn tokens(&self) -> usize {
        match self {
            Self::EncodeQuestion { question: text, .. }
            | Self::ScoreCandidate { candidate: text, .. }
            | Self::MatchPair { text, .. }
            | Self::EmbedText { text, .. }
            | Self::EmbedMultimodal { text, .. } => text.len(),
            Self::EmbedImage { .. } => 0,
        }
    }
}

/// Output of a [`SinglePassRow`].
#[derive(Debug, Clone)]
pub enum SinglePassOutput<M> {
    /// The question's hidden states, for `EncodeQuestion`.
    EncoderStates {
        /// The hidden states.
        states: M,
        /// For each token, its attention weights, if the row asked for them.
        attention: Option<Vec<PatchWeights>>,
    },
    /// For `ScoreCandidate`: the candidate's tokens with their natural log-probabilities, `[SEP]` included.
    Scored(ScoredText),
    /// For `MatchPair`: the outputs of the matching head.
    MatchLogits(MatchLogits),
    /// For the `Embed*` rows: the raw vector, not normalised, or the states of all tokens, row-major.
    Embedding(Embedding),
}

/// Input of a new group: the encoder states, the prompt and the decoding parameters.
#[derive(Debug, Clone)]
pub struct GroupSpec<M> {
    /// The model whose decoder runs.
    pub model: ModelId,
    /// What the group attends to: the image's features (caption) or the question's hidden states (VQA).
    pub states: M,
    /// Token ids of a caption prompt, `[CLS] prompt [SEP]`.
    pub prompt: Option<TokenIds>,
    /// Decoding parameters. If they ask for several samples, each sample is a separate group.
    pub params: GenerationParams,
    /// Index of this group's sequence among the samples, from 0; 0 unless sampling.
    pub sequence: usize,
    /// Whether the sequence includes attention weights; only for a single row that attends to an image.
    pub explain: Option<Explain>,
}

impl<M> GroupSpec<M> {
    /// Returns the number of tokens that the group's first step processes. The model drops the prompt's `[SEP]`; without
    /// a prompt, generation starts from one token.
    #[must_use]
    pub fn first_step_tokens(&self) -> usize {
        self.prompt.as_ref().map_or(1, |prompt| prompt.len().max(2) - 1)
    }
}

/// The result of one step for one group.
#[derive(Debug, Clone, PartialEq)]
pub struct StepEvent {
    /// The token that a single-sequence group appended. `None` for beam search, whose tokens are not final yet.
    pub token: Option<TokenLogprob>,
    /// Number of tokens that this step generated, one for each row that advanced. Used only for counters.
    pub generated: usize,
    /// The group's sequences, best first, if this step was its last.
    pub finished: Option<Vec<Sequence>>,
}

/// Why a backend call failed. The texts are for logs; clients never see them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The device or a kernel failed.
    #[error("device error: {0}")]
    Device(String),
    /// The device is unusable until the process is restarted, as a GPU is after an illegal memory access.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The device is out of memory. A smaller work unit may succeed.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// An output contains NaN or infinity.
    #[error("non-finite values in {0}")]
    NonFinite(&'static str),
}
