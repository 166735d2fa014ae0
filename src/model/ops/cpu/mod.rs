//! The fused operations on our own CPU kernels. Weights are in f32, bf16 or 8-bit integers. The kernels run at an
//! instruction set level that the CPU supports.
//!
//! Activations are always f32. When a matrix product packs its input rows, it rounds them to the format of the weights.
//! It sums in f32 or, for 8-bit weights, in exact integers. Softmax, layer norm, GELU and the residual stream are f32
//! in every format. Where 8 bits are not accurate enough or gain nothing, models with 8-bit weights use bf16: in the patch
//! embedding, in cross-attention, in self-attention of fewer than 64 tokens, and in layers with fewer than 64 columns (the
//! matching head).
//!
//! This file implements [`Ops`]. It loads weights, computes linear layers, layer norms, token embeddings and copies of
//! rows, and delegates attention and the patch embedding to the modules below.
//!
//! - `attention`: self-attention, cross-attention, and the forms of keys and values;
//! - `weights`: cross-attention weights for explanations;
//! - `patches`: the patch embedding;
//! - `folded`: cross-attention over image features, without keys and values;
//! - `causal`: the KV cache of text that is being generated;
//! - `act`: activations, in buffers that are reused.

mod act;
mod attention;
mod causal;
mod folded;
mod patches;
mod weights;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor};

use act::Arena;
pub use act::CpuActivations;
use attention::starts;
pub use attention::{CpuKvCache, CpuKvProjection};
pub use causal::CausalRows;
pub use folded::{AbsorbedKv, AbsorbedKvWeights};
pub use patches::CpuPatchEmbedding;

use super::{
    Activation, Epilogue, FeedForward, HostRows, KvLifetime, Ops, PatchEmbeddingWeights,
    PersistentKvShape, RowRun,
};
use crate::engine::backend::BackendError;
use crate::kernels::attention::PackedKv;
use crate::kernels::context::KernelContext;
use crate::kernels::gemm::{self, Format, PackedWeights};
use crate::kernels::isa::Level;
use crate::kernels::pointwise;
use crate::task::Pixels;

/// Minimum number of output columns of a layer whose weights are quantised to 8 bits. Layers with fewer columns gain
/// nothing from quantisation, and errors in their output affect the answer directly.
const FEW_COLUMNS: usize = 64;

/// Minimum number of tokens of a sequence whose self-attention runs in 8 bits in models with 8-bit weights: images, but
/// not short texts, which would gain nothing.
const MANY_TOKENS: usize = 64;

/// Maximum size in bytes of a layer's widest activations in one pass, so that they stay in the third-level cache
/// together with the weights. In a base-size model, they take 7 MB per image. Eight images in one pass take 2.5 %
/// longer than eight passes of one image each, because in the larger pass all data comes from main memory.
const PASS_BYTES: usize = 12 << 20;

/// Operations at one instruction set level, with weights in one format. They have their own thread pool.
#[derive(Debug)]
pub struct CpuOps {
    level: Level,
    format: Format,
    arena: Arc<Arena>,
    /// Only one thread calls the operations, so the lock is never contended. Boxed, because the operations are moved when
    /// models are loaded.
    workspace: Box<Mutex<Workspace>>,
}

/// The kernels' context, and buffers that are reused between operations.
#[derive(Debug)]
struct Workspace {
    context: KernelContext,
    /// Packed keys and values of the last self-attention, kept so that the next self-attention can reuse their buffers.
    memories: Vec<PackedKv>,
}

/// Weights of one layer norm, in f32.
#[derive(Debug)]
pub struct CpuLayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl CpuLayerNorm {
    /// Returns the parameters as the kernels take them.
    fn kernel(&self) -> pointwise::LayerNorm<'_> {
        pointwise::LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// An embedding table `[n, width]` in f32.
#[derive(Debug)]
pub struct CpuTable {
    values: Vec<f32>,
    width: usize,
}

impl CpuOps {
    /// Creates operations at `level`, which the CPU must support, with weights in `format`, on `threads` threads.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn try_new(level: Level, format: Format, threads: usize) -> io::Result<Self> {
        let context = KernelContext::try_new(level, threads)?;
        let workspace = Box::new(Mutex::new(Workspace { context, memories: Vec::new() }));
        Ok(Self { level, format, arena: Arc::default(), workspace })
    }

    fn workspace(&self) -> MutexGuard<'_, Workspace> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the format of attention and of the other parts for which 8 bits are not accurate enough.
    fn attention_format(&self) -> Format {
        if self.format == Format::Int8 { Format::Bf16 } else { self.format }
    }

    /// Returns the format of bidirectional self-attention over a sequence of `tokens` tokens. It depends only on the
    /// sequence, so the bits of a result do not depend on its batch neighbours.
    fn self_attention_format(&self, tokens: usize) -> Format {
        let is_8_bit = self.format == Format::Int8 && tokens >= MANY_TOKENS;
        if is_8_bit { Format::Int8 } else { self.attention_format() }
    }

    fn pack(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        format: Format,
    ) -> Result<PackedWeights, BackendError> {
        let n = weight.dim(0)?;
        let (weight, bias) = (values(weight)?, bias.map(values).transpose()?);
        Ok(PackedWeights::pack(&mut self.workspace().context, format, &weight, bias.as_deref(), n))
    }

    /// Returns activations `[rows, width]` whose values `fill` writes.
    fn act(
        &self,
        rows: usize,
        width: usize,
        fill: impl FnOnce(&mut Workspace, &mut [f32]),
    ) -> CpuActivations {
        let mut values = self.arena.take(rows * width);
        fill(&mut self.workspace(), &mut values);
        CpuActivations::from_arena(&self.arena, rows, width, values)
    }
}

/// Returns all values of the tensor as f32.
fn values(tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl Ops for CpuOps {
    type Act = CpuActivations;
    type Linear = PackedWeights;
    type KvProjection = CpuKvProjection;
    type LayerNorm = CpuLayerNorm;
    type Table = CpuTable;
    type PatchEmbedding = CpuPatchEmbedding;
    type KvCache = CpuKvCache;

    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<PackedWeights, BackendError> {
        let few = weight.dim(0)? < FEW_COLUMNS;
        self.pack(weight, bias, if few { self.attention_format() } else { self.format })
    }

    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        heads: usize,
        usage: KvLifetime,
    ) -> Result<CpuKvProjection, BackendError> {
        match usage {
            KvLifetime::Transient => {
                self.load_linear(weight, Some(bias)).map(CpuKvProjection::Projected)
            }
            KvLifetime::Persistent => {
                let (weight, bias) = (values(weight)?, values(bias)?);
                let context = &mut self.workspace().context;
                let format = self.attention_format();
                let folded = AbsorbedKvWeights::pack(context, format, &weight, &bias, heads);
                Ok(CpuKvProjection::Folded(Arc::new(folded)))
            }
        }
    }

    fn has_few_row_form(&self) -> bool {
        true
    }

    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<CpuLayerNorm, BackendError> {
        Ok(CpuLayerNorm { weight: values(weight)?, bias: values(bias)?, eps: eps as f32 })
    }

    fn load_table(&self, table: &Tensor) -> Result<CpuTable, BackendError> {
        Ok(CpuTable { values: values(table)?, width: table.dim(1)? })
    }

    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<CpuPatchEmbedding, BackendError> {
        self.load_patches(weights)
    }

    fn patch_embedding(
        &self,
        weights: &CpuPatchEmbedding,
        images: &[&Pixels],
    ) -> Result<CpuActivations, BackendError> {
        self.embed_patches(weights, images)
    }

    fn embed_tokens(
        &self,
        words: &CpuTable,
        positions: &CpuTable,
        tokens: &[(u32, u32)],
    ) -> Result<CpuActivations, BackendError> {
        let width = words.width;
        let row = |index: u32| index as usize * width..(index as usize + 1) * width;
        Ok(self.act(tokens.len(), width, |_, out| {
            for (out, &(token, position)) in out.chunks_exact_mut(width).zip(tokens) {
                let word = &words.values[row(token)];
                let position = &positions.values[row(position)];
                for ((out, word), position) in out.iter_mut().zip(word).zip(position) {
                    *out = word + position;
                }
            }
        }))
    }

    fn layer_norm(
        &self,
        x: &CpuActivations,
        weights: &CpuLayerNorm,
    ) -> Result<CpuActivations, BackendError> {
        Ok(self.act(x.rows(), x.width(), |workspace, out| {
            pointwise::layer_norm(&mut workspace.context, x.values(), weights.kernel(), out);
        }))
    }

    fn linear(
        &self,
        x: &CpuActivations,
        weights: &PackedWeights,
        epilogue: Epilogue<'_, CpuActivations>,
    ) -> Result<CpuActivations, BackendError> {
        let epilogue = match epilogue {
            Epilogue::None => gemm::Epilogue::None,
            Epilogue::Activation(activation) => gemm::Epilogue::Activation(activation),
            Epilogue::Residual(residual) => gemm::Epilogue::Residual(residual.values()),
        };
        Ok(self.act(x.rows(), weights.n(), |workspace, out| {
            gemm::linear(&mut workspace.context, x.values(), weights, epilogue, out);
        }))
    }

    fn normed_linear(
        &self,
        x: &CpuActivations,
        norm: &CpuLayerNorm,
        weights: &PackedWeights,
    ) -> Result<CpuActivations, BackendError> {
        Ok(self.act(x.rows(), weights.n(), |Workspace { context, .. }, out| {
            let norm = Some(norm.kernel());
            gemm::normed_linear(context, x.values(), norm, weights, gemm::Epilogue::None, out);
        }))
    }

    fn feed_forward(
        &self,
        x: &CpuActivations,
        norm: Option<&CpuLayerNorm>,
        layers: FeedForward<'_, PackedWeights>,
    ) -> Result<CpuActivations, BackendError> {
        // In 8 bits, the second product needs the range of each whole row before it can round its values.
        if layers.activation != Activation::Gelu || layers.outer.format() == Format::Int8 {
            return layers.one_by_one(self, x, norm);
        }
        Ok(self.act(x.rows(), layers.outer.n(), |Workspace { context, .. }, out| {
            let norm = norm.map(CpuLayerNorm::kernel);
            let weights = [layers.inner, layers.outer];
            gemm::feed_forward(context, x.values(), norm, weights, x.values(), out);
        }))
    }

    fn self_attention(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
    ) -> Result<CpuActivations, BackendError> {
        Ok(self.attend_bidirectionally(qkv, heads, lengths))
    }

    fn cached_attention(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&CpuKvCache>],
    ) -> Result<(CpuActivations, Vec<CpuKvCache>), BackendError> {
        self.attend_causally(qkv, heads, lengths, caches)
    }

    fn keys_values(
        &self,
        memory: &CpuActivations,
        weights: &CpuKvProjection,
        heads: usize,
    ) -> Result<CpuKvCache, BackendError> {
        self.project_keys_values(memory, weights, heads)
    }

    fn cross_attention(
        &self,
        query: &CpuActivations,
        _: usize,
        runs: &[RowRun<&CpuKvCache>],
    ) -> Result<CpuActivations, BackendError> {
        self.attend_across(query, runs)
    }

    fn attention_weights(
        &self,
        query: &CpuActivations,
        heads: usize,
        memory: &CpuActivations,
        weights: &CpuKvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        self.weights_across(query, heads, memory, weights)
    }

    fn select_rows(
        &self,
        x: &CpuActivations,
        rows: &[usize],
    ) -> Result<CpuActivations, BackendError> {
        Ok(self.act(rows.len(), x.width(), |_, out| {
            for (out, &row) in out.chunks_exact_mut(x.width()).zip(rows) {
                out.copy_from_slice(x.row(row));
            }
        }))
    }

    fn split_rows(
        &self,
        x: &CpuActivations,
        lengths: &[usize],
    ) -> Result<Vec<CpuActivations>, BackendError> {
        let width = x.width();
        let part = |(start, &rows): (usize, &usize)| {
            let values = &x.values()[start * width..(start + rows) * width];
            CpuActivations::kept(rows, width, act::copy_of(values))
        };
        Ok(starts(lengths).zip(lengths).map(part).collect())
    }

    fn images_per_pass(&self, tokens: usize, width: usize) -> usize {
        // The widest activations of a layer are four times as wide as the tower.
        (PASS_BYTES / (4 * tokens * width * size_of::<f32>())).max(1)
    }

    fn feature_bytes(&self, tokens: usize, width: usize) -> u64 {
        (tokens * width * size_of::<f32>()) as u64
    }

    fn cross_kv_bytes(&self, memory: PersistentKvShape) -> u64 {
        // All layers share one packed copy of the features.
        let PersistentKvShape { tokens, memory_width, .. } = memory;
        PackedKv::shared_bytes(self.level, self.attention_format(), memory_width, tokens) as u64
    }

    fn kv_bytes_per_token(&self, width: usize) -> u64 {
        2 * self.feature_bytes(1, width)
    }

    fn to_host(&self, x: &CpuActivations) -> Result<Vec<Vec<f32>>, BackendError> {
        Ok((0..x.rows()).map(|row| act::copy_of(x.row(row))).collect())
    }

    fn host_rows<'a>(&self, x: &'a CpuActivations) -> Result<HostRows<'a>, BackendError> {
        Ok(HostRows::new(x.values(), x.width()))
    }
}
