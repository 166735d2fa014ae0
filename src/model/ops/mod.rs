//! The fused operations from which the towers are built. To add a device or an instruction set, implement [`Ops`] here.
//!
//! [`Ops`] knows nothing about BLIP, and the towers know nothing about tensors. [`candle`] implements the operations
//! on the CPU for every dtype, and is the reference for tests. [`cpu`] implements them with our own CPU kernels, and
//! [`gpu`] with our own GPU kernels. [`timed`] wraps an implementation and measures it.
//!
//! Texts are never padded: activations are `[rows, width]` over concatenated sequences, and attention receives the
//! length of each sequence.

pub mod candle;
pub mod cpu;
pub mod gpu;
mod host;
pub mod timed;

use std::fmt::Debug;

use candle_core::Tensor;

use crate::engine::backend::{BackendError, DeviceUsage};
pub use crate::kernels::activation::Activation;
use crate::task::Pixels;
pub use host::{BestTokens, HostRows};

/// Epilogue of a linear layer: the operation applied to the matrix product before the result is stored.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a, A> {
    /// Only the bias: `x W^T + b`.
    None,
    /// An activation function: `activation(x W^T + b)`.
    Activation(Activation),
    /// A residual connection: `x W^T + b + residual`.
    Residual(&'a A),
}

/// The two linear layers of a feed-forward block.
#[derive(Debug)]
pub struct FeedForward<'a, L> {
    /// The first layer.
    pub inner: &'a L,
    /// The activation between the layers.
    pub activation: Activation,
    /// The second layer.
    pub outer: &'a L,
}

impl<L> FeedForward<'_, L> {
    /// Computes [`Ops::feed_forward`] with one operation after the other.
    fn one_by_one<O: Ops<Linear = L> + ?Sized>(
        &self,
        ops: &O,
        x: &O::Act,
        norm: Option<&O::LayerNorm>,
    ) -> Result<O::Act, BackendError> {
        let normed = norm.map(|norm| ops.layer_norm(x, norm)).transpose()?;
        let activation = Epilogue::Activation(self.activation);
        let inner = ops.linear(normed.as_ref().unwrap_or(x), self.inner, activation)?;
        ops.linear(&inner, self.outer, Epilogue::Residual(x))
    }
}

/// Consecutive rows that attend to the same keys and values.
#[derive(Debug, Clone, Copy)]
pub struct RowRun<M> {
    /// The keys and values, or the encoder states, that the rows attend to.
    pub memory: M,
    /// Number of rows in the run.
    pub rows: usize,
}

/// Lifetime of the cross-attention keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvLifetime {
    /// Persistent: kept while text is generated for an image, and read by a few rows in each step.
    Persistent,
    /// Transient: used by one pass only, or computed from a short text.
    Transient,
}

/// Dimensions of the persistent cross-attention keys and values that a decoder keeps for one image.
#[derive(Debug, Clone, Copy)]
pub struct PersistentKvShape {
    /// Number of tokens of the image.
    pub tokens: usize,
    /// Width of the image's features.
    pub memory_width: usize,
    /// Number of layers of the decoder.
    pub layers: usize,
    /// Number of attention heads per layer.
    pub heads: usize,
    /// Width of the decoder's hidden state.
    pub width: usize,
}

/// Parameters of the patch embedding: a convolution whose stride equals its kernel, the class token, the position
/// embeddings, and the normalisation of pixels.
#[derive(Debug)]
pub struct PatchEmbeddingWeights {
    /// Kernel of the convolution, `[width, 3, patch, patch]`.
    pub weight: Tensor,
    /// Bias of the convolution, `[width]`.
    pub bias: Tensor,
    /// Embedding of the class token, `[1, 1, width]`.
    pub class_embedding: Tensor,
    /// Position embeddings of all tokens, `[1, tokens, width]`.
    pub position_embedding: Tensor,
    /// Mean per channel, subtracted after multiplication by `rescale`.
    pub mean: [f32; 3],
    /// Standard deviation per channel; the last step divides by it.
    pub std: [f32; 3],
    /// Factor by which 8-bit values are multiplied, usually 1/255.
    pub rescale: f32,
}

impl PatchEmbeddingWeights {
    /// Returns a lookup table: for each channel, the normalised value of every 8-bit value.
    fn normalised(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                (value as f32 * self.rescale - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

/// Passes with equal keys make the same calls, apart from values such as tokens, pixels and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PassKey {
    /// A vision tower encodes images.
    Vision {
        /// Address of the tower, which identifies it.
        tower: usize,
        /// Number of images.
        images: usize,
        /// The layer whose states are wanted, if it is not the last one.
        layer: Option<usize>,
    },
    /// Rows of one new token each advance by a decode step.
    Decode {
        /// Address of the decoder, which identifies it.
        decoder: usize,
        /// Number of rows.
        rows: usize,
    },
}

/// All operations that the towers and heads of BLIP need, about a dozen.
///
/// Weights arrive as CPU tensors in the file's dtype; each implementation converts them once, when it loads them. All
/// activations are `[rows, width]`. A call returns either a complete result or an error, and leaves no state behind.
pub trait Ops: Debug {
    /// Activations `[rows, width]`; clones share the values.
    type Act: Clone + Debug;
    /// Weights of one linear layer.
    type Linear: Debug;
    /// Weights of a layer that projects encoder states to keys and values.
    type KvProjection: Debug;
    /// Weights of one layer norm.
    type LayerNorm: Debug;
    /// An embedding table, `[n, width]`.
    type Table: Debug;
    /// Weights of the patch embedding.
    type PatchEmbedding: Debug;
    /// Keys and values of one sequence in one layer; clones share them.
    type KvCache: Clone + Debug;

    /// Loads a linear layer: `weight` is `[out, in]`, `bias` is `[out]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self::Linear, BackendError>;
    /// Loads a projection to keys and values. `weight` is `[2 x width, memory width]` and `bias` is `[2 x width]`; in
    /// both, the keys come first.
    ///
    /// # Errors
    /// When the device fails.
    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        heads: usize,
        usage: KvLifetime,
    ) -> Result<Self::KvProjection, BackendError>;
    /// Checks that attention can compute heads of this number and total width, so that a model that does not fit the
    /// kernels is refused when it is loaded.
    ///
    /// # Errors
    /// [`BackendError::Device`] if it cannot.
    fn check_heads(&self, width: usize, heads: usize) -> Result<(), BackendError> {
        let _ = (width, heads);
        Ok(())
    }
    /// Reserves memory for the KV caches of a decoder of this width, if they need it in advance.
    ///
    /// # Errors
    /// When the device has not enough memory.
    fn reserve_kv_caches(&self, width: usize) -> Result<(), BackendError> {
        let _ = width;
        Ok(())
    }
    /// True if persistent keys and values have a form of their own, which saves work if only a few rows attend to them.
    fn has_few_row_form(&self) -> bool;
    /// Loads a layer norm; `weight` and `bias` are `[width]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<Self::LayerNorm, BackendError>;
    /// Loads an embedding table `[n, width]`.
    ///
    /// # Errors
    /// When the device fails.
    fn load_table(&self, table: &Tensor) -> Result<Self::Table, BackendError>;
    /// Loads the patch embedding; see [`PatchEmbeddingWeights`].
    ///
    /// # Errors
    /// When the device fails.
    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<Self::PatchEmbedding, BackendError>;

    /// Runs `pass`, whose operations are those of all passes with this key. A device may record them once and launch
    /// them together from then on.
    ///
    /// # Errors
    /// Those of `pass`, and when the device fails.
    fn pass<T>(
        &self,
        key: PassKey,
        pass: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError>
    where
        Self: Sized,
    {
        let _ = key;
        pass()
    }
    /// Returns how a device with memory of its own is used; `None` on a CPU.
    fn device_usage(&self) -> Option<DeviceUsage> {
        None
    }
    /// Returns the number of equal passes after which the next one takes its usual time.
    fn passes_to_warm_up(&self) -> usize {
        0
    }
    /// Waits until the results of all operations so far are there. A GPU computes asynchronously: operations return
    /// before their results are there.
    ///
    /// # Errors
    /// When an operation failed after it had returned.
    fn wait(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Embeds pixels as `[images x tokens, width]`: normalises the patches, multiplies them by the weights, puts the
    /// class token first, and adds the position embeddings.
    ///
    /// # Errors
    /// When the device fails.
    fn patch_embedding(
        &self,
        weights: &Self::PatchEmbedding,
        images: &[&Pixels],
    ) -> Result<Self::Act, BackendError>;
    /// Computes `words[token] + positions[position]` for each pair `(token, position)` in `tokens`.
    ///
    /// # Errors
    /// When the device fails.
    fn embed_tokens(
        &self,
        words: &Self::Table,
        positions: &Self::Table,
        tokens: &[(u32, u32)],
    ) -> Result<Self::Act, BackendError>;
    /// Computes `(x - mean) / sqrt(var + eps) * weight + bias` over each row.
    ///
    /// # Errors
    /// When the device fails.
    fn layer_norm(
        &self,
        x: &Self::Act,
        weights: &Self::LayerNorm,
    ) -> Result<Self::Act, BackendError>;
    /// Applies a linear layer and its epilogue to `x` `[rows, in]`. Returns `[rows, out]`.
    ///
    /// # Errors
    /// When the device fails.
    fn linear(
        &self,
        x: &Self::Act,
        weights: &Self::Linear,
        epilogue: Epilogue<'_, Self::Act>,
    ) -> Result<Self::Act, BackendError>;
    /// Computes `linear(layer_norm(x))`.
    ///
    /// # Errors
    /// When the device fails.
    fn normed_linear(
        &self,
        x: &Self::Act,
        norm: &Self::LayerNorm,
        weights: &Self::Linear,
    ) -> Result<Self::Act, BackendError> {
        self.linear(&self.layer_norm(x, norm)?, weights, Epilogue::None)
    }
    /// Computes a feed-forward block of `x` or, with `norm`, of its layer norm, and adds `x`.
    ///
    /// # Errors
    /// When the device fails.
    fn feed_forward(
        &self,
        x: &Self::Act,
        norm: Option<&Self::LayerNorm>,
        layers: FeedForward<'_, Self::Linear>,
    ) -> Result<Self::Act, BackendError> {
        layers.one_by_one(self, x, norm)
    }
    /// Computes bidirectional self-attention within each sequence. `qkv` is `[rows, 3 x width]`; the `lengths` of the
    /// sequences sum to `rows`.
    ///
    /// # Errors
    /// When the device fails.
    fn self_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
    ) -> Result<Self::Act, BackendError>;
    /// Computes causal self-attention with a KV cache. The new rows of a sequence attend to its cached rows, and
    /// causally to each other. `caches[i]` is the cache of sequence i, or `None` in its first step. Returns the output,
    /// and the caches with the new rows appended.
    ///
    /// # Errors
    /// When the device fails.
    fn cached_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&Self::KvCache>],
    ) -> Result<(Self::Act, Vec<Self::KvCache>), BackendError>;
    /// Computes the keys and values of encoder states `[tokens, memory width]`, or an equivalent form of them (see
    /// [`cpu::AbsorbedKv`]).
    ///
    /// # Errors
    /// When the device fails.
    fn keys_values(
        &self,
        memory: &Self::Act,
        weights: &Self::KvProjection,
        heads: usize,
    ) -> Result<Self::KvCache, BackendError>;
    /// Computes cross-attention. The query rows of a run attend to all keys and values of the run.
    ///
    /// # Errors
    /// When the device fails.
    fn cross_attention(
        &self,
        query: &Self::Act,
        heads: usize,
        runs: &[RowRun<&Self::KvCache>],
    ) -> Result<Self::Act, BackendError>;
    /// Computes cross-attention over encoder states `[tokens, memory width]`, which are projected to keys and values for
    /// this call only.
    ///
    /// # Errors
    /// When the device fails.
    fn projected_attention(
        &self,
        query: &Self::Act,
        weights: &Self::KvProjection,
        heads: usize,
        runs: &[RowRun<&Self::Act>],
    ) -> Result<Self::Act, BackendError> {
        let projected = runs
            .iter()
            .map(|run| self.keys_values(run.memory, weights, heads))
            .collect::<Result<Vec<_>, _>>()?;
        let runs: Vec<_> = projected
            .iter()
            .zip(runs)
            .map(|(memory, run)| RowRun { memory, rows: run.rows })
            .collect();
        self.cross_attention(query, heads, &runs)
    }
    /// Computes the cross-attention weights of `query` `[rows, width]` over encoder states `[tokens, memory width]`:
    /// `softmax(q k^T / sqrt(head width))`, averaged over the heads. Returns one vector of `tokens` weights per row. This
    /// is only for explanations; attention itself never stores its weights.
    ///
    /// # Errors
    /// When the device fails.
    fn attention_weights(
        &self,
        query: &Self::Act,
        heads: usize,
        memory: &Self::Act,
        weights: &Self::KvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError>;
    /// Copies the rows with these indices, in this order.
    ///
    /// # Errors
    /// When the device fails.
    fn select_rows(&self, x: &Self::Act, rows: &[usize]) -> Result<Self::Act, BackendError>;
    /// Splits the rows into consecutive slices, one per length. Each slice has its own memory, because the images or
    /// questions of a batch have different lifetimes.
    ///
    /// # Errors
    /// When the device fails.
    fn split_rows(&self, x: &Self::Act, lengths: &[usize]) -> Result<Vec<Self::Act>, BackendError>;
    /// Returns the maximum number of images to encode in one pass, for a vision tower with this number of tokens per
    /// image and this width.
    fn images_per_pass(&self, tokens: usize, width: usize) -> usize;
    /// Returns the size in bytes of stored features `[tokens, width]`.
    fn feature_bytes(&self, tokens: usize, width: usize) -> u64;
    /// Returns the size in bytes of persistent cross-attention keys and values, over all layers of the decoder.
    fn cross_kv_bytes(&self, memory: PersistentKvShape) -> u64;
    /// Returns the number of bytes per token in one layer's KV cache.
    fn kv_bytes_per_token(&self, width: usize) -> u64;
    /// Returns the `count` largest logits of each row of `logits` `[rows, vocabulary]`; `None` if it is better to read all
    /// logits on the host.
    ///
    /// # Errors
    /// When the device fails, and [`BackendError::NonFinite`] when a logit is NaN or infinite.
    fn best_tokens(
        &self,
        logits: &Self::Act,
        count: usize,
    ) -> Result<Option<Vec<BestTokens>>, BackendError> {
        let _ = (logits, count);
        Ok(None)
    }
    /// Copies all values to the host as f32, one vector per row.
    ///
    /// # Errors
    /// When the device fails.
    fn to_host(&self, x: &Self::Act) -> Result<Vec<Vec<f32>>, BackendError>;
    /// Returns all values as f32 on the host, to be read at once: without a copy if they are in the host's memory.
    ///
    /// # Errors
    /// When the device fails.
    fn host_rows<'a>(&self, x: &'a Self::Act) -> Result<HostRows<'a>, BackendError>;
}
