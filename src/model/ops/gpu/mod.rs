//! The fused operations on a GPU, built from the kernels of `crate::gpu`.
//!
//! Activations that are added up over layers are f32 ("wide"); the inputs of matrix products are in the format of the
//! weights ("narrow"). Softmax, layer norm and sums are f32 in every format. Nothing waits for the device until values
//! are copied to the host.
//!
//! This file implements [`Ops`], with the modules below.
//!
//! - `act`: activations;
//! - `pass`: passes that become graphs, and where their buffers are;
//! - `weights`: weights, and how they come to the device;
//! - `linear`: linear layers and layer norms;
//! - `attention`: self-attention and cross-attention;
//! - `kv_cache`: the KV cache of text that is being generated, in pages;
//! - `patches`: the patch embedding;
//! - `scores`: the best tokens of logits.

mod act;
mod attention;
mod kv_cache;
mod linear;
mod pass;
mod patches;
mod scores;
mod weights;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::Tensor;

pub use act::GpuActivations;
pub use attention::{GpuKvCache, GpuKvProjection};
pub use kv_cache::CachedRows;
pub use patches::GpuPatchEmbedding;

use super::{
    BestTokens, Epilogue, FeedForward, HostRows, KvLifetime, Ops, PassKey, PatchEmbeddingWeights,
    PersistentKvShape, RowRun,
};
use crate::engine::backend::{BackendError, DeviceUsage};
use crate::gpu::device::{Address, Device, DeviceError, Format};
use crate::gpu::heap::Buffer;
use crate::gpu::kernels::attention::MAX_HEAD_WIDTH;
use crate::gpu::kernels::folded::{MAX_HEADS, MAX_STATES_WIDTH};
use crate::gpu::kernels::rows;
use crate::gpu::pages::PagePool;
use crate::gpu::recorder::Recorder;
use crate::task::Pixels;
use linear::{Output, Sums};
use pass::Memory;
use weights::Bias;
pub use weights::{GpuLayerNorm, GpuLinear, GpuTable};

/// Maximum number of images in one pass. The widest activations of 64 images of a base-size model take 227 MB.
const MOST_IMAGES: usize = 64;

/// Operations on one GPU, with weights in one format.
#[derive(Debug)]
pub struct GpuOps {
    /// The device, behind the recorder.
    device: Arc<Recorder<PassKey>>,
    format: Format,
    memory: Memory,
    kv_bytes: u64,
    /// Size of the device's memory in bytes; 0 if it does not say.
    total_bytes: u64,
    /// Pages of the KV cache, by the width of a row of keys.
    pages: Mutex<HashMap<usize, Arc<PagePool>>>,
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::OutOfMemory(detail) => Self::OutOfMemory(detail),
            DeviceError::Failed(detail) => Self::Device(detail),
            DeviceError::Lost(detail) => Self::DeviceLost(detail),
        }
    }
}

impl GpuOps {
    /// Creates operations on `device`. The KV caches of all rows together take up to `kv_bytes`, and an eighth more for pages
    /// that are not full.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, format: Format, kv_bytes: u64) -> Self {
        let memory = Memory::new(&device);
        // Only a metric, so an error does not matter here: other calls will return it too.
        let total_bytes = device.memory_info().map_or(0, |info| info.total);
        let device = Arc::new(Recorder::new(device));
        Self { device, format, memory, kv_bytes, total_bytes, pages: Mutex::default() }
    }

    /// Returns the number of passes that ran as graphs.
    #[must_use]
    pub fn replays(&self) -> u64 {
        self.device.replays()
    }

    /// Returns the number of recorded graphs that were given up.
    pub(super) fn lost_graphs(&self) -> u64 {
        self.device.lost_graphs()
    }

    /// Returns the number of free pages of KV caches whose keys have `width` values.
    #[cfg(test)]
    pub(in crate::model) fn free_pages(&self, width: usize) -> usize {
        self.page_pool(width).unwrap().free_pages()
    }

    /// Overwrites all memory that nothing uses, so that a test sees whether work reads it.
    #[cfg(test)]
    pub(in crate::model) fn fill_free(&self, byte: u8) {
        for heap in self.memory.heaps() {
            heap.fill_free(byte).unwrap();
        }
        for pool in self.pages.lock().unwrap().values() {
            pool.fill_free(byte).unwrap();
        }
    }

    fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Returns a buffer for `count` narrow values.
    fn narrow_buffer(&self, count: usize) -> Result<Buffer, BackendError> {
        Ok(self.memory.passing().buffer(count * self.format.bytes())?)
    }

    /// Returns a buffer for `count` wide values.
    fn wide_buffer(&self, count: usize) -> Result<Buffer, BackendError> {
        Ok(self.memory.passing().buffer(count * size_of::<f32>())?)
    }

    /// Copies data that kernels read to the device. If a layer before has just placed equal data, returns its buffer.
    fn place(&self, bytes: Vec<u8>) -> Result<Arc<Buffer>, BackendError> {
        Ok(self.memory.place(&*self.device, bytes)?)
    }

    /// Copies numbers to the device, as the 32-bit integers that kernels read.
    fn place_ints(&self, values: &[usize]) -> Result<Arc<Buffer>, BackendError> {
        let mut bytes = Vec::with_capacity(values.len() * size_of::<i32>());
        for &value in values {
            let int = i32::try_from(value)
                .map_err(|_| BackendError::Device(format!("{value} rows or pages are too many")))?;
            bytes.extend(int.to_le_bytes());
        }
        self.place(bytes)
    }

    /// Copies `count` f32 values to the host.
    fn fetch(&self, from: Address, count: usize) -> Result<Vec<f32>, BackendError> {
        let mut bytes = vec![0; count * size_of::<f32>()];
        self.device.download(from, &mut bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().map(|&value| f32::from_le_bytes(value)).collect())
    }
}

impl Ops for GpuOps {
    type Act = GpuActivations;
    type Linear = GpuLinear;
    type KvProjection = GpuKvProjection;
    type LayerNorm = GpuLayerNorm;
    type Table = GpuTable;
    type PatchEmbedding = GpuPatchEmbedding;
    type KvCache = GpuKvCache;

    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<GpuLinear, BackendError> {
        let (n, k) = weight.dims2()?;
        let bias = bias
            .map(|bias| {
                Ok::<_, BackendError>(Bias {
                    wide: self.place_wide(bias)?,
                    narrow: self.place_narrow(bias)?,
                })
            })
            .transpose()?;
        Ok(GpuLinear { weight: self.place_narrow(weight)?, bias, n, k })
    }

    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        heads: usize,
        _: KvLifetime,
    ) -> Result<GpuKvProjection, BackendError> {
        let linear = self.load_linear(weight, Some(bias))?;
        self.check_heads(linear.n / 2, heads)?;
        if linear.k > MAX_STATES_WIDTH {
            return Err(BackendError::Device(format!(
                "cross-attention to states of {} values; GPU kernels support up to {MAX_STATES_WIDTH}",
                linear.k
            )));
        }
        Ok(GpuKvProjection::new(linear))
    }

    fn check_heads(&self, width: usize, heads: usize) -> Result<(), BackendError> {
        let head_width = width / heads;
        if head_width > MAX_HEAD_WIDTH {
            return Err(BackendError::Device(format!(
                "attention heads of {head_width} values; GPU kernels support up to {MAX_HEAD_WIDTH}"
            )));
        }
        if heads > MAX_HEADS {
            return Err(BackendError::Device(format!(
                "{heads} attention heads; GPU kernels support up to {MAX_HEADS}"
            )));
        }
        Ok(())
    }

    fn reserve_kv_caches(&self, width: usize) -> Result<(), BackendError> {
        self.add_page_pool(width)
    }

    /// One form of the weights serves many rows and few.
    fn has_few_row_form(&self) -> bool {
        false
    }

    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<GpuLayerNorm, BackendError> {
        Ok(GpuLayerNorm {
            weight: self.place_wide(weight)?,
            bias: self.place_wide(bias)?,
            eps: eps as f32,
        })
    }

    fn load_table(&self, table: &Tensor) -> Result<GpuTable, BackendError> {
        let (rows, width) = table.dims2()?;
        Ok(GpuTable { values: self.place_wide(table)?, rows, width })
    }

    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<GpuPatchEmbedding, BackendError> {
        self.load_patches(weights)
    }

    fn pass<T>(
        &self,
        key: PassKey,
        pass: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.recorded(key, pass)
    }

    fn device_usage(&self) -> Option<DeviceUsage> {
        Some(self.usage())
    }

    /// The first pass is recorded, the second becomes a graph.
    fn passes_to_warm_up(&self) -> usize {
        2
    }

    fn wait(&self) -> Result<(), BackendError> {
        Ok(self.device.synchronize()?)
    }

    fn patch_embedding(
        &self,
        weights: &GpuPatchEmbedding,
        images: &[&Pixels],
    ) -> Result<GpuActivations, BackendError> {
        self.embed_patches(weights, images)
    }

    fn embed_tokens(
        &self,
        words: &GpuTable,
        positions: &GpuTable,
        tokens: &[(u32, u32)],
    ) -> Result<GpuActivations, BackendError> {
        let is_known = |&(token, position): &(u32, u32)| {
            (token as usize) < words.rows && (position as usize) < positions.rows
        };
        if let Some((token, position)) = tokens.iter().find(|&token| !is_known(token)) {
            // The kernel would read beside the tables, after which a GPU may be unusable.
            return Err(BackendError::Device(format!(
                "token {token} at position {position} has no embedding"
            )));
        }
        let (rows, width) = (self.memory.launched(tokens.len()), words.width);
        let mut pairs: Vec<u8> = tokens
            .iter()
            .flat_map(|&(token, position)| [token, position])
            .flat_map(u32::to_le_bytes)
            .collect();
        pairs.resize(rows * 2 * size_of::<u32>(), 0);
        let count = tokens.len();
        let tokens = self.place(pairs)?;
        let out = self.wide_buffer(rows * width)?;
        rows::embed_tokens(
            self.device(),
            rows::EmbedTokens {
                words: words.values.address(),
                positions: positions.values.address(),
                tokens: tokens.address(),
                out: out.address(),
                rows,
                width,
            },
        )?;
        Ok(self.wide_act(count, width, out))
    }

    fn layer_norm(
        &self,
        x: &GpuActivations,
        weights: &GpuLayerNorm,
    ) -> Result<GpuActivations, BackendError> {
        self.norm(x, weights, true)
    }

    fn linear(
        &self,
        x: &GpuActivations,
        weights: &GpuLinear,
        epilogue: Epilogue<'_, GpuActivations>,
    ) -> Result<GpuActivations, BackendError> {
        let out = self.wide_buffer(x.launched() * weights.n)?;
        let input = self.narrow(x)?;
        let residual = match epilogue {
            Epilogue::Residual(residual) => Some(self.wide(residual)?),
            Epilogue::None | Epilogue::Activation(_) => None,
        };
        let activation = match epilogue {
            Epilogue::Activation(activation) => activation.into(),
            Epilogue::None | Epilogue::Residual(_) => rows::Activation::Identity,
        };
        let residual = residual.as_ref().map(|residual| residual.address());
        let into = Output { activation, residual, ..Output::wide(out.address()) };
        self.product(input.address(), x.launched(), weights, into, Sums::Invariant)?;
        Ok(self.wide_act(x.rows(), weights.n, out))
    }

    fn normed_linear(
        &self,
        x: &GpuActivations,
        norm: &GpuLayerNorm,
        weights: &GpuLinear,
    ) -> Result<GpuActivations, BackendError> {
        let normed = self.narrow(&self.norm(x, norm, false)?)?;
        let out = self.narrow_buffer(x.launched() * weights.n)?;
        let into = Output::narrow(out.address());
        self.product(normed.address(), x.launched(), weights, into, Sums::Invariant)?;
        Ok(self.narrow_act(x.rows(), weights.n, out))
    }

    fn feed_forward(
        &self,
        x: &GpuActivations,
        norm: Option<&GpuLayerNorm>,
        layers: FeedForward<'_, GpuLinear>,
    ) -> Result<GpuActivations, BackendError> {
        let FeedForward { inner, activation, outer } = layers;
        let (rows, residual) = (x.launched(), self.wide(x)?);
        let input = match norm {
            Some(norm) => self.narrow(&self.norm(x, norm, false)?)?,
            None => self.narrow(x)?,
        };
        let middle = self.narrow_buffer(rows * inner.n)?;
        let activation = activation.into();
        let into = Output { activation, ..Output::narrow(middle.address()) };
        self.product(input.address(), rows, inner, into, Sums::Invariant)?;
        let out = self.wide_buffer(rows * outer.n)?;
        let into = Output { residual: Some(residual.address()), ..Output::wide(out.address()) };
        self.product(middle.address(), rows, outer, into, Sums::Invariant)?;
        Ok(self.wide_act(x.rows(), outer.n, out))
    }

    fn self_attention(
        &self,
        qkv: &GpuActivations,
        heads: usize,
        lengths: &[usize],
    ) -> Result<GpuActivations, BackendError> {
        self.attend_bidirectionally(qkv, heads, lengths)
    }

    fn cached_attention(
        &self,
        qkv: &GpuActivations,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&GpuKvCache>],
    ) -> Result<(GpuActivations, Vec<GpuKvCache>), BackendError> {
        self.attend_causally(qkv, heads, lengths, caches)
    }

    fn keys_values(
        &self,
        memory: &GpuActivations,
        weights: &GpuKvProjection,
        _: usize,
    ) -> Result<GpuKvCache, BackendError> {
        Ok(GpuKvCache::of_states(self.lasting_narrow(memory)?, memory.rows(), weights))
    }

    fn cross_attention(
        &self,
        query: &GpuActivations,
        heads: usize,
        runs: &[RowRun<&GpuKvCache>],
    ) -> Result<GpuActivations, BackendError> {
        self.attend_to_states(query, heads, runs)
    }

    fn projected_attention(
        &self,
        query: &GpuActivations,
        weights: &GpuKvProjection,
        heads: usize,
        runs: &[RowRun<&GpuActivations>],
    ) -> Result<GpuActivations, BackendError> {
        self.attend_to_projections(query, weights, heads, runs)
    }

    fn attention_weights(
        &self,
        query: &GpuActivations,
        heads: usize,
        memory: &GpuActivations,
        weights: &GpuKvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        self.weights_over_states(query, heads, memory, weights)
    }

    fn select_rows(
        &self,
        x: &GpuActivations,
        rows: &[usize],
    ) -> Result<GpuActivations, BackendError> {
        self.gather(x, rows)
    }

    /// The slices are in the format of the weights, in which every later product reads them.
    fn split_rows(
        &self,
        x: &GpuActivations,
        lengths: &[usize],
    ) -> Result<Vec<GpuActivations>, BackendError> {
        self.split(x, lengths)
    }

    fn images_per_pass(&self, _: usize, _: usize) -> usize {
        MOST_IMAGES
    }

    fn feature_bytes(&self, tokens: usize, width: usize) -> u64 {
        (tokens * width * self.format.bytes()) as u64
    }

    /// Decoders attend to the features themselves, of which no copy is made.
    fn cross_kv_bytes(&self, _: PersistentKvShape) -> u64 {
        0
    }

    fn kv_bytes_per_token(&self, width: usize) -> u64 {
        2 * self.feature_bytes(1, width)
    }

    fn best_tokens(
        &self,
        logits: &GpuActivations,
        count: usize,
    ) -> Result<Option<Vec<BestTokens>>, BackendError> {
        self.find_best(logits, count).map(Some)
    }

    fn to_host(&self, x: &GpuActivations) -> Result<Vec<Vec<f32>>, BackendError> {
        let rows = self.host_rows(x)?;
        Ok(rows.iter().map(<[f32]>::to_vec).collect())
    }

    fn host_rows<'a>(&self, x: &'a GpuActivations) -> Result<HostRows<'a>, BackendError> {
        let values = self.fetch(self.wide(x)?.address(), x.rows() * x.width())?;
        Ok(HostRows::new(values, x.width()))
    }
}
