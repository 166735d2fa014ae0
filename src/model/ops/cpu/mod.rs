//! The fused operations on our own CPU kernels. Weights are in f32, bf16 or 8-bit integers. The kernels run at an
//! instruction set level that the CPU supports.
//!
//! Activations are always f32. A matrix product rounds its rows to the format of the weights when it packs them. It
//! sums in f32 or, for 8-bit weights, in exact integers. Softmax, layer norm, GELU and the residual stream are f32 in
//! every format. Where 8 bits are not accurate enough, models with 8-bit weights use bf16: in attention, in the patch
//! embedding, and in layers with fewer than 64 columns (the matching head).
//!
//! The file is longer than others because it is one implementation of one trait.

mod act;
mod causal;
mod folded;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor};

use act::Arena;
pub use act::CpuActivations;
pub use causal::CausalRows;
pub use folded::{AbsorbedKv, AbsorbedKvWeights};

use super::{Epilogue, KvLifetime, Ops, PatchEmbeddingWeights, PersistentKvShape, RowRun};
use crate::engine::backend::BackendError;
use crate::kernels::attention::{self, AttentionRun, CausalRun, Heads, PackedKv};
use crate::kernels::context::KernelContext;
use crate::kernels::gemm::{self, Format, PackedWeights};
use crate::kernels::isa::Level;
use crate::kernels::pointwise;
use crate::kernels::rows::Rows;
use crate::task::Pixels;

/// Minimum number of output columns of a layer whose weights are quantised to 8 bits. Layers with fewer columns gain
/// nothing from quantisation, and errors in their output affect the answer directly.
const FEW_COLUMNS: usize = 64;

/// Maximum size in bytes of a layer's widest activations in one pass, so that they stay in the third-level cache
/// together with the weights. In a base-size model, they take 7 MB per image. Eight images in one pass take 2.5 %
/// longer than eight passes of one image each, because all data then comes from main memory.
const PASS_BYTES: usize = 12 << 20;

/// Maximum number of packed sequences whose buffers are kept for the next self-attention. Each takes at most 3 MB (512
/// tokens in f32).
const MOST_MEMORIES: usize = 8;

/// Operations at one instruction set level, with weights in one format. They have their own thread pool.
#[derive(Debug)]
pub struct CpuOps {
    level: Level,
    format: Format,
    arena: Arc<Arena>,
    /// Only one thread calls the operations, so the lock is never contended.
    workspace: Mutex<Workspace>,
}

/// The kernels' context, and buffers that are reused between operations.
#[derive(Debug)]
struct Workspace {
    context: KernelContext,
    /// Packed keys and values of the last self-attention, kept so that the next one reuses their buffers.
    memories: Vec<PackedKv>,
}

/// Weights of one layer norm, in f32.
#[derive(Debug)]
pub struct CpuLayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

/// An embedding table `[n, width]` in f32.
#[derive(Debug)]
pub struct CpuTable {
    values: Vec<f32>,
    width: usize,
}

/// Weights of the patch embedding, which is a matrix product in which each patch is one row.
#[derive(Debug)]
pub struct CpuPatchEmbedding {
    linear: PackedWeights,
    class_embedding: Vec<f32>,
    /// Position embeddings of all tokens, `[tokens, width]`.
    positions: Vec<f32>,
    /// For each channel, the normalised value of every 8-bit value.
    normalised: [[f32; 256]; 3],
    patch: usize,
}

/// Weights of one layer's projection to cross-attention keys and values.
#[derive(Debug)]
pub enum CpuKvProjection {
    /// A linear layer that computes the keys and values.
    Projected(PackedWeights),
    /// Projections that are folded into the queries and the results; see [`AbsorbedKv`].
    Folded(Arc<AbsorbedKvWeights>),
}

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone)]
pub enum CpuKvCache {
    /// Keys and values of encoder states, packed once and read by many queries.
    PackedKv(Arc<PackedKv>),
    /// Image features, used in place of keys and values, which are then never computed.
    Folded(AbsorbedKv),
    /// Self-attention KV cache of text that is being generated.
    Causal(Arc<CausalRows>),
}

impl CpuOps {
    /// Creates operations at `level`, which the CPU must support, with weights in `format`, on `threads` threads.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn try_new(level: Level, format: Format, threads: usize) -> io::Result<Self> {
        let context = KernelContext::try_new(level, threads)?;
        let workspace = Mutex::new(Workspace { context, memories: Vec::new() });
        Ok(Self { level, format, arena: Arc::default(), workspace })
    }

    fn workspace(&self) -> MutexGuard<'_, Workspace> {
        self.workspace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the format of attention and of the other parts for which 8 bits are not accurate enough.
    fn attention_format(&self) -> Format {
        if self.format == Format::Int8 { Format::Bf16 } else { self.format }
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

    /// Returns activations `[rows, width]` that `fill` writes.
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

    /// Returns the normalised patches, `[images x patches, 3 x patch x patch]`. The outermost dimension of a patch is
    /// the channel, as in the convolution's kernel.
    fn patches(&self, weights: &CpuPatchEmbedding, images: &[&Pixels]) -> Vec<f32> {
        let patch = weights.patch;
        let line_values = |image: &Pixels| image.width() as usize / patch * weights.linear.k();
        let lines: Vec<(&Pixels, usize)> = images
            .iter()
            .flat_map(|&image| (0..image.height() as usize / patch).map(move |line| (image, line)))
            .collect();
        let total = lines.iter().map(|(image, _)| line_values(image)).sum();
        let mut values = self.arena.take(total);
        // All images of one tower have the same size.
        let each = lines.first().map_or(1, |(image, _)| line_values(image));
        let places: Vec<Mutex<&mut [f32]>> = values.chunks_mut(each).map(Mutex::new).collect();
        self.workspace().context.pool().run(lines.len(), &|index| {
            let (image, line) = lines[index];
            let mut place = places[index].lock().unwrap_or_else(PoisonError::into_inner);
            patch_line(weights, image, line, &mut place);
        });
        drop(places);
        values
    }
}

/// Writes one line of normalised patches of the image to `to`.
fn patch_line(weights: &CpuPatchEmbedding, image: &Pixels, line: usize, to: &mut [f32]) {
    let patch = weights.patch;
    let width = image.width() as usize;
    for (column, to) in to.chunks_exact_mut(weights.linear.k()).enumerate() {
        for ((channel, table), to) in
            weights.normalised.iter().enumerate().zip(to.chunks_exact_mut(patch * patch))
        {
            for (y, to) in to.chunks_exact_mut(patch).enumerate() {
                let start = ((line * patch + y) * width + column * patch) * 3;
                let pixels = image.as_bytes()[start..start + patch * 3].chunks_exact(3);
                for (to, rgb) in to.iter_mut().zip(pixels) {
                    *to = table[usize::from(rgb[channel])];
                }
            }
        }
    }
}

/// Returns all values of the tensor as f32.
fn values(tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Splits the columns of `x` into `parts` equal parts, and returns part `index` of the rows `start..start + rows`.
fn columns(x: &CpuActivations, index: usize, parts: usize, start: usize, rows: usize) -> Rows<'_> {
    let stride = x.width();
    Rows { values: &x.values()[start * stride..], stride, column: index * stride / parts, rows }
}

/// Returns the index of the first row of each sequence, given the lengths of all sequences.
fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |next, length| {
        let start = *next;
        *next += length;
        Some(start)
    })
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
        let (_, _, patch, _) = weights.weight.dims4()?;
        Ok(CpuPatchEmbedding {
            linear: self.pack(&weights.weight, Some(&weights.bias), self.attention_format())?,
            class_embedding: values(&weights.class_embedding)?,
            positions: values(&weights.position_embedding)?,
            normalised: weights.normalised(),
            patch,
        })
    }

    fn patch_embedding(
        &self,
        weights: &CpuPatchEmbedding,
        images: &[&Pixels],
    ) -> Result<CpuActivations, BackendError> {
        let width = weights.linear.n();
        let tokens = weights.positions.len() / width;
        let patches = self.patches(weights, images);
        let patches = CpuActivations::from_arena(
            &self.arena,
            patches.len() / weights.linear.k(),
            weights.linear.k(),
            patches,
        );
        let embedded = self.linear(&patches, &weights.linear, Epilogue::None)?;
        Ok(self.act(images.len() * tokens, width, |_, out| {
            let images = embedded.values().chunks_exact((tokens - 1) * width);
            for (out, patches) in out.chunks_exact_mut(tokens * width).zip(images) {
                let values = weights.class_embedding.iter().chain(patches);
                for ((out, value), position) in out.iter_mut().zip(values).zip(&weights.positions) {
                    *out = value + position;
                }
            }
        }))
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
            let CpuLayerNorm { weight, bias, eps } = weights;
            let norm = pointwise::LayerNorm { weight, bias, eps: *eps };
            pointwise::layer_norm(&mut workspace.context, x.values(), norm, out);
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

    fn self_attention(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
    ) -> Result<CpuActivations, BackendError> {
        let width = qkv.width() / 3;
        let heads = Heads { count: heads, width: width / heads };
        Ok(self.act(qkv.rows(), width, |Workspace { context, memories }, out| {
            let missing = lengths.len().saturating_sub(memories.len());
            let memory = || PackedKv::new(self.attention_format(), heads);
            memories.extend(std::iter::repeat_with(memory).take(missing));
            for ((memory, start), &rows) in memories.iter_mut().zip(starts(lengths)).zip(lengths) {
                memory.pack(
                    context,
                    heads,
                    columns(qkv, 1, 3, start, rows),
                    columns(qkv, 2, 3, start, rows),
                );
            }
            let runs: Vec<_> = memories
                .iter()
                .zip(starts(lengths))
                .zip(lengths)
                .map(|((memory, start), &rows)| AttentionRun {
                    queries: columns(qkv, 0, 3, start, rows),
                    memory,
                    scale: heads.scale(),
                })
                .collect();
            attention::attend(context, &runs, out);
            memories.truncate(MOST_MEMORIES);
        }))
    }

    fn cached_attention(
        &self,
        qkv: &CpuActivations,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&CpuKvCache>],
    ) -> Result<(CpuActivations, Vec<CpuKvCache>), BackendError> {
        let width = qkv.width() / 3;
        let heads = Heads { count: heads, width: width / heads };
        let mut extended = Vec::with_capacity(lengths.len());
        for ((start, &rows), cache) in starts(lengths).zip(lengths).zip(caches) {
            let past = match cache {
                Some(CpuKvCache::Causal(past)) => Some(&**past),
                Some(CpuKvCache::PackedKv(_) | CpuKvCache::Folded(_)) => return Err(wrong_form()),
                None => None,
            };
            extended.push(Arc::new(CausalRows::extend(past, qkv, start, rows)));
        }
        let pieces: Vec<_> = extended.iter().map(|cache| cache.pieces()).collect();
        let runs: Vec<_> = starts(lengths)
            .zip(lengths)
            .zip(&pieces)
            .map(|((start, &rows), memory)| CausalRun {
                queries: columns(qkv, 0, 3, start, rows),
                memory,
            })
            .collect();
        let out = self.act(qkv.rows(), width, |workspace, out| {
            attention::attend_causally(&mut workspace.context, heads, &runs, out);
        });
        Ok((out, extended.into_iter().map(CpuKvCache::Causal).collect()))
    }

    fn keys_values(
        &self,
        memory: &CpuActivations,
        weights: &CpuKvProjection,
        heads: usize,
    ) -> Result<CpuKvCache, BackendError> {
        let weights = match weights {
            CpuKvProjection::Projected(weights) => weights,
            CpuKvProjection::Folded(weights) => return Ok(self.folded(memory, weights)),
        };
        let projected = self.linear(memory, weights, Epilogue::None)?;
        let rows = projected.rows();
        let heads = Heads { count: heads, width: projected.width() / 2 / heads };
        let mut packed = PackedKv::new(self.attention_format(), heads);
        let (keys, values) =
            (columns(&projected, 0, 2, 0, rows), columns(&projected, 1, 2, 0, rows));
        packed.pack(&mut self.workspace().context, heads, keys, values);
        Ok(CpuKvCache::PackedKv(Arc::new(packed)))
    }

    fn cross_attention(
        &self,
        query: &CpuActivations,
        _: usize,
        runs: &[RowRun<&CpuKvCache>],
    ) -> Result<CpuActivations, BackendError> {
        if let Some(CpuKvCache::Folded(first)) = runs.first().map(|run| run.memory) {
            return self.folded_attention(query, first.weights(), runs);
        }
        let lengths: Vec<usize> = runs.iter().map(|run| run.rows).collect();
        let runs = runs
            .iter()
            .zip(starts(&lengths))
            .map(|(run, start)| match run.memory {
                CpuKvCache::PackedKv(memory) => Ok(AttentionRun {
                    queries: columns(query, 0, 1, start, run.rows),
                    memory,
                    scale: memory.heads().scale(),
                }),
                CpuKvCache::Causal(_) | CpuKvCache::Folded(_) => Err(wrong_form()),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.act(query.rows(), query.width(), |workspace, out| {
            attention::attend(&mut workspace.context, &runs, out);
        }))
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
            CpuActivations::kept(
                rows,
                width,
                x.values()[start * width..(start + rows) * width].to_vec(),
            )
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
        let heads = Heads { count: 1, width: memory.memory_width };
        PackedKv::bytes_of(self.level, self.attention_format(), heads, memory.tokens) as u64
    }

    fn kv_bytes_per_token(&self, width: usize) -> u64 {
        2 * self.feature_bytes(1, width)
    }

    fn to_host(&self, x: &CpuActivations) -> Result<Vec<Vec<f32>>, BackendError> {
        Ok((0..x.rows()).map(|row| x.row(row).to_vec()).collect())
    }
}

/// Returns the error for keys and values in a form that the operation does not accept. It occurs only if the server has
/// a bug.
fn wrong_form() -> BackendError {
    BackendError::Device("keys and values of the wrong form".to_owned())
}
