//! The fused operations that the towers are written against: the seam at which a device or an instruction set is added.
//!
//! [`Ops`] knows nothing of BLIP, the towers know nothing of tensors. [`candle`] implements it for every device
//! and dtype and is the oracle; [`cpu`] implements it on our own kernels; [`timed`] measures either.
//!
//! Texts never pad: activations are `[rows, width]` over concatenated sequences, and attention is told
//! where each sequence lies.

pub mod candle;
pub mod cpu;
pub mod timed;

use std::fmt::Debug;

use candle_core::Tensor;

use crate::engine::backend::BackendError;
pub use crate::kernels::activation::Activation;
use crate::task::Pixels;

/// What a linear layer does with its product before it is stored.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a, A> {
    /// `x W^T + b`.
    None,
    /// `activation(x W^T + b)`.
    Activation(Activation),
    /// `x W^T + b + residual`.
    Residual(&'a A),
}

/// A run of consecutive rows that attend to the same memory.
#[derive(Debug, Clone, Copy)]
pub struct Run<M> {
    /// What they attend to.
    pub memory: M,
    /// How many rows.
    pub rows: usize,
}

/// How cross-attention's keys and values are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryUse {
    /// Kept while texts are written over an image, a few rows a step.
    Kept,
    /// Needed by one pass, or of a short text.
    Passing,
}

/// Dimensions of an image's memory that is kept for one decoder.
#[derive(Debug, Clone, Copy)]
pub struct KeptMemory {
    /// Tokens of the image.
    pub tokens: usize,
    /// Width of its features.
    pub memory_width: usize,
    /// Layers of the decoder.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Width of the decoder.
    pub width: usize,
}

/// What patch embedding needs: a convolution with stride = kernel, the class token, the positions, normalisation.
#[derive(Debug)]
pub struct PatchEmbeddingWeights {
    /// `[width, 3, patch, patch]`.
    pub weight: Tensor,
    /// `[width]`.
    pub bias: Tensor,
    /// `[1, 1, width]`.
    pub class_embedding: Tensor,
    /// `[1, tokens, width]`.
    pub position_embedding: Tensor,
    /// Subtracted from each channel after division by 255.
    pub mean: [f32; 3],
    /// Divides each channel after that.
    pub std: [f32; 3],
    /// Multiplies the 8-bit values (1/255).
    pub rescale: f32,
}

impl PatchEmbeddingWeights {
    /// For each channel and 8-bit value, the normalised value.
    fn normalised(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                (value as f32 * self.rescale - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

/// About a dozen operations, enough for every tower and head of BLIP.
///
/// Weights arrive as CPU tensors in the file's dtype and are brought into the implementation's own form once.
/// All activations are `[rows, width]`. A call either returns a whole result or an error; nothing is kept.
pub trait Ops: Debug {
    /// Activations `[rows, width]`; clones share.
    type Act: Clone + Debug;
    /// A linear layer's weights.
    type Linear: Debug;
    /// The weights that make keys and values of a memory.
    type KeyValue: Debug;
    /// A layer norm's weights.
    type LayerNorm: Debug;
    /// A table of rows `[n, width]`.
    type Table: Debug;
    /// The patch embedding's weights.
    type PatchEmbedding: Debug;
    /// Keys and values of one sequence in one layer; clones share.
    type KeysValues: Clone + Debug;

    /// `weight` `[out, in]`, `bias` `[out]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self::Linear, BackendError>;
    /// `weight` `[2 x width, memory width]` and `bias` `[2 x width]`, keys first.
    ///
    /// # Errors
    /// When the device fails.
    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        heads: usize,
        usage: MemoryUse,
    ) -> Result<Self::KeyValue, BackendError>;
    /// `weight` and `bias` `[width]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Self::LayerNorm, BackendError>;
    /// `table` `[n, width]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_table(&self, table: &Tensor) -> Result<Self::Table, BackendError>;
    /// See [`PatchEmbeddingWeights`].
    ///
    /// # Errors
    /// When the device fails.
    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<Self::PatchEmbedding, BackendError>;

    /// Pixels to `[images x tokens, width]`: normalised patches times weights, the class token first, positions added.
    ///
    /// # Errors
    /// When the device fails.
    fn patch_embedding(
        &self,
        weights: &Self::PatchEmbedding,
        images: &[&Pixels],
    ) -> Result<Self::Act, BackendError>;
    /// `words[token] + positions[position]` for each pair.
    ///
    /// # Errors
    /// When the device fails.
    fn embed_tokens(
        &self,
        words: &Self::Table,
        positions: &Self::Table,
        tokens: &[(u32, u32)],
    ) -> Result<Self::Act, BackendError>;
    /// `(x - mean) / sqrt(var + eps) * weight + bias` over each row.
    ///
    /// # Errors
    /// When the device fails.
    fn layer_norm(
        &self,
        x: &Self::Act,
        weights: &Self::LayerNorm,
    ) -> Result<Self::Act, BackendError>;
    /// `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// When the device fails.
    fn linear(
        &self,
        x: &Self::Act,
        weights: &Self::Linear,
        epilogue: Epilogue<'_, Self::Act>,
    ) -> Result<Self::Act, BackendError>;
    /// Every sequence attends to the whole of itself; `qkv` is `[rows, 3 x width]`, `lengths` sum to `rows`.
    ///
    /// # Errors
    /// When the device fails.
    fn self_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
    ) -> Result<Self::Act, BackendError>;
    /// Every sequence's new rows attend to its cached rows and causally to each other. `caches[i]` is what
    /// sequence i has cached; returned beside the output are the caches with the new rows behind them.
    ///
    /// # Errors
    /// When the device fails.
    fn cached_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&Self::KeysValues>],
    ) -> Result<(Self::Act, Vec<Self::KeysValues>), BackendError>;
    /// Keys and values of a memory `[tokens, memory width]`, or whatever stands for them.
    ///
    /// # Errors
    /// When the device fails.
    fn keys_values(
        &self,
        memory: &Self::Act,
        weights: &Self::KeyValue,
        heads: usize,
    ) -> Result<Self::KeysValues, BackendError>;
    /// Each run of query rows attends to all of its memory.
    ///
    /// # Errors
    /// When the device fails.
    fn cross_attention(
        &self,
        query: &Self::Act,
        heads: usize,
        runs: &[Run<&Self::KeysValues>],
    ) -> Result<Self::Act, BackendError>;
    /// The rows with these indices, in this order.
    ///
    /// # Errors
    /// When the device fails.
    fn select_rows(&self, x: &Self::Act, rows: &[usize]) -> Result<Self::Act, BackendError>;
    /// Consecutive slices of rows, one per length, each in memory of its own: images or questions of one batch
    /// outlive each other.
    ///
    /// # Errors
    /// When the device fails.
    fn split_rows(&self, x: &Self::Act, lengths: &[usize]) -> Result<Vec<Self::Act>, BackendError>;
    /// Images that a vision tower of this many tokens and this width encodes together at most.
    fn images_per_pass(&self, tokens: usize, width: usize) -> usize;
    /// Bytes that features of this shape take while they are kept.
    fn feature_bytes(&self, tokens: usize, width: usize) -> u64;
    /// Bytes of all layers' keys and values of a memory that is kept.
    fn memory_bytes(&self, memory: KeptMemory) -> u64;
    /// Bytes of one layer's keys and values of one token of a text being written.
    fn causal_bytes(&self, width: usize) -> u64;
    /// All values on the host as f32, one vector a row.
    ///
    /// # Errors
    /// When the device fails.
    fn to_host(&self, x: &Self::Act) -> Result<Vec<Vec<f32>>, BackendError>;
}
