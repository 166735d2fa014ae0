//! The profiler, which forwards every operation to another implementation. It counts the calls and adds up their
//! durations, separately for each kind of work. Only `bench --profile` uses it.
//!
//! On a GPU, which computes asynchronously, an operation returns before its computation ends. So the durations recorded
//! on a GPU say little about how long the computations take.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::{
    BestTokens, Epilogue, FeedForward, HostRows, KvLifetime, Ops, PassKey, PatchEmbeddingWeights,
    PersistentKvShape, RowRun,
};
use crate::engine::backend::{BackendError, DeviceUsage};
use crate::task::Pixels;

/// Minimum number of rows for which a [`WorkKind`] records the number of rows of a product. With fewer rows, the
/// duration of a product depends mainly on reading the weights.
const MANY_ROWS: usize = 64;

/// Operations that forward to `O`, and measure durations while [`Times`] is recording.
#[derive(Debug)]
pub struct Timed<O> {
    ops: O,
    times: Arc<Times>,
}

/// The recorded durations, shared by [`Timed`] and the code that reads them. Recording is off at first.
#[derive(Debug, Default)]
pub struct Times {
    recording: AtomicBool,
    parts: Mutex<BTreeMap<WorkKind, Spent>>,
}

/// A kind of work. Durations are added up per kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkKind {
    /// A linear layer, including its epilogue and a layer norm before it.
    Linear {
        /// Width of the layer's input.
        input: usize,
        /// Width of the layer's output.
        output: usize,
        /// Number of rows of the input; `None` if the product has few rows.
        rows: Option<usize>,
    },
    /// The two linear layers of a feed-forward block, with the activation between them.
    FeedForward {
        /// Width of the block's input and output.
        width: usize,
        /// Width between the layers.
        inner: usize,
        /// Number of rows; `None` if there are few.
        rows: Option<usize>,
    },
    /// Bidirectional attention within each sequence.
    SelfAttention,
    /// Attention to the keys and values of encoder states.
    CrossAttention,
    /// Causal self-attention of the decoder's new rows, with a KV cache.
    CachedAttention,
    /// Computation of the cross-attention keys and values of an image or a question, including the projection.
    KeysAndValues,
    /// Layer norm over each row.
    LayerNorm,
    /// Embedding of pixels, including the matrix product.
    PatchEmbedding,
    /// Embedding of token ids and positions.
    EmbedTokens,
    /// Selecting rows, splitting rows, and copying rows to the host.
    Copies,
}

/// Total duration and number of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Sum of the durations of all calls.
    pub time: Duration,
    /// Number of calls that were measured.
    pub calls: usize,
}

/// Activations with their number of rows.
#[derive(Debug, Clone)]
pub struct TimedActivations<A> {
    values: A,
    rows: usize,
}

/// A linear layer with its shape.
#[derive(Debug)]
pub struct TimedLinear<L> {
    weights: L,
    input: usize,
    output: usize,
}

/// A patch embedding with its number of tokens per image.
#[derive(Debug)]
pub struct TimedPatchEmbedding<P> {
    weights: P,
    tokens: usize,
}

impl<O> Timed<O> {
    /// Wraps `ops`. Recording is off at first.
    #[must_use]
    pub fn new(ops: O) -> Self {
        Self { ops, times: Arc::default() }
    }

    /// Returns the recorder, which starts and stops recording and returns the durations.
    #[must_use]
    pub fn times(&self) -> Arc<Times> {
        Arc::clone(&self.times)
    }

    fn time<T>(&self, kind: WorkKind, call: impl FnOnce(&O) -> T) -> T {
        if !self.times.recording.load(Ordering::Relaxed) {
            return call(&self.ops);
        }
        let start = Instant::now();
        let result = call(&self.ops);
        self.times.add(kind, start.elapsed());
        result
    }
}

impl Times {
    /// Clears the recorded durations and starts recording.
    pub fn start(&self) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.recording.store(true, Ordering::Relaxed);
    }

    /// Stops recording and returns the durations, longest first.
    #[must_use]
    pub fn stop(&self) -> Vec<(WorkKind, Spent)> {
        self.recording.store(false, Ordering::Relaxed);
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut parts: Vec<(WorkKind, Spent)> = parts.into_iter().collect();
        parts.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.time));
        parts
    }

    fn add(&self, kind: WorkKind, time: Duration) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = parts.entry(kind).or_default();
        spent.time += time;
        spent.calls += 1;
    }
}

impl fmt::Display for WorkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear { input, output, rows: None } => write!(f, "linear {input}x{output}"),
            Self::Linear { input, output, rows: Some(rows) } => {
                write!(f, "linear {input}x{output} ({rows} rows)")
            }
            Self::FeedForward { width, inner, rows: None } => {
                write!(f, "feed-forward {width}x{inner}")
            }
            Self::FeedForward { width, inner, rows: Some(rows) } => {
                write!(f, "feed-forward {width}x{inner} ({rows} rows)")
            }
            Self::SelfAttention => f.write_str("self attention"),
            Self::CrossAttention => f.write_str("cross attention"),
            Self::CachedAttention => f.write_str("cached attention"),
            Self::KeysAndValues => f.write_str("keys and values"),
            Self::LayerNorm => f.write_str("layer norm"),
            Self::PatchEmbedding => f.write_str("patch embedding"),
            Self::EmbedTokens => f.write_str("embed tokens"),
            Self::Copies => f.write_str("copies"),
        }
    }
}

/// Returns the number of rows if a [`WorkKind`] records it.
fn many(rows: usize) -> Option<usize> {
    Some(rows).filter(|&rows| rows >= MANY_ROWS)
}

impl<L> TimedLinear<L> {
    /// Returns the kind of a product of `rows` rows with this layer.
    fn kind(&self, rows: usize) -> WorkKind {
        WorkKind::Linear { input: self.input, output: self.output, rows: many(rows) }
    }
}

/// Attaches the known number of rows to the result.
fn with_rows<A>(
    rows: usize,
    result: Result<A, BackendError>,
) -> Result<TimedActivations<A>, BackendError> {
    result.map(|values| TimedActivations { values, rows })
}

impl<O: Ops> Ops for Timed<O> {
    type Act = TimedActivations<O::Act>;
    type Linear = TimedLinear<O::Linear>;
    type KvProjection = O::KvProjection;
    type LayerNorm = O::LayerNorm;
    type Table = O::Table;
    type PatchEmbedding = TimedPatchEmbedding<O::PatchEmbedding>;
    type KvCache = O::KvCache;

    fn load_linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self::Linear, BackendError> {
        let (output, input) = weight.dims2()?;
        Ok(TimedLinear { weights: self.ops.load_linear(weight, bias)?, input, output })
    }

    fn load_key_value(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        heads: usize,
        usage: KvLifetime,
    ) -> Result<O::KvProjection, BackendError> {
        self.ops.load_key_value(weight, bias, heads, usage)
    }

    fn reserve_kv_caches(&self, width: usize) -> Result<(), BackendError> {
        self.ops.reserve_kv_caches(width)
    }

    fn pass<T>(
        &self,
        key: PassKey,
        pass: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.ops.pass(key, pass)
    }

    fn wait(&self) -> Result<(), BackendError> {
        self.ops.wait()
    }

    fn device_usage(&self) -> Option<DeviceUsage> {
        self.ops.device_usage()
    }

    fn passes_to_warm_up(&self) -> usize {
        self.ops.passes_to_warm_up()
    }

    fn best_tokens(
        &self,
        logits: &Self::Act,
        count: usize,
    ) -> Result<Option<Vec<BestTokens>>, BackendError> {
        self.time(WorkKind::Copies, |ops| ops.best_tokens(&logits.values, count))
    }

    fn projected_attention(
        &self,
        query: &Self::Act,
        weights: &O::KvProjection,
        heads: usize,
        runs: &[RowRun<&Self::Act>],
    ) -> Result<Self::Act, BackendError> {
        let plain: Vec<_> =
            runs.iter().map(|run| RowRun { memory: &run.memory.values, rows: run.rows }).collect();
        let call = |ops: &O| ops.projected_attention(&query.values, weights, heads, &plain);
        with_rows(query.rows, self.time(WorkKind::CrossAttention, call))
    }

    fn check_heads(&self, width: usize, heads: usize) -> Result<(), BackendError> {
        self.ops.check_heads(width, heads)
    }

    fn has_few_row_form(&self) -> bool {
        self.ops.has_few_row_form()
    }

    fn load_layer_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
    ) -> Result<O::LayerNorm, BackendError> {
        self.ops.load_layer_norm(weight, bias, eps)
    }

    fn load_table(&self, table: &Tensor) -> Result<O::Table, BackendError> {
        self.ops.load_table(table)
    }

    fn load_patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<Self::PatchEmbedding, BackendError> {
        let tokens = weights.position_embedding.dim(1)?;
        Ok(TimedPatchEmbedding { weights: self.ops.load_patch_embedding(weights)?, tokens })
    }

    fn patch_embedding(
        &self,
        weights: &Self::PatchEmbedding,
        images: &[&Pixels],
    ) -> Result<Self::Act, BackendError> {
        let call = |ops: &O| ops.patch_embedding(&weights.weights, images);
        with_rows(images.len() * weights.tokens, self.time(WorkKind::PatchEmbedding, call))
    }

    fn embed_tokens(
        &self,
        words: &O::Table,
        positions: &O::Table,
        tokens: &[(u32, u32)],
    ) -> Result<Self::Act, BackendError> {
        let call = |ops: &O| ops.embed_tokens(words, positions, tokens);
        with_rows(tokens.len(), self.time(WorkKind::EmbedTokens, call))
    }

    fn layer_norm(&self, x: &Self::Act, weights: &O::LayerNorm) -> Result<Self::Act, BackendError> {
        with_rows(x.rows, self.time(WorkKind::LayerNorm, |ops| ops.layer_norm(&x.values, weights)))
    }

    fn linear(
        &self,
        x: &Self::Act,
        weights: &Self::Linear,
        epilogue: Epilogue<'_, Self::Act>,
    ) -> Result<Self::Act, BackendError> {
        let epilogue = match epilogue {
            Epilogue::None => Epilogue::None,
            Epilogue::Activation(activation) => Epilogue::Activation(activation),
            Epilogue::Residual(residual) => Epilogue::Residual(&residual.values),
        };
        let kind = weights.kind(x.rows);
        with_rows(x.rows, self.time(kind, |ops| ops.linear(&x.values, &weights.weights, epilogue)))
    }

    fn normed_linear(
        &self,
        x: &Self::Act,
        norm: &O::LayerNorm,
        weights: &Self::Linear,
    ) -> Result<Self::Act, BackendError> {
        let kind = weights.kind(x.rows);
        let call = |ops: &O| ops.normed_linear(&x.values, norm, &weights.weights);
        with_rows(x.rows, self.time(kind, call))
    }

    fn feed_forward(
        &self,
        x: &Self::Act,
        norm: Option<&O::LayerNorm>,
        layers: FeedForward<'_, Self::Linear>,
    ) -> Result<Self::Act, BackendError> {
        let FeedForward { inner: TimedLinear { weights: inner, input, output }, activation, outer } =
            layers;
        let kind = WorkKind::FeedForward { width: *input, inner: *output, rows: many(x.rows) };
        let layers = FeedForward { inner, activation, outer: &outer.weights };
        with_rows(x.rows, self.time(kind, |ops| ops.feed_forward(&x.values, norm, layers)))
    }

    fn self_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
    ) -> Result<Self::Act, BackendError> {
        let call = |ops: &O| ops.self_attention(&qkv.values, heads, lengths);
        with_rows(qkv.rows, self.time(WorkKind::SelfAttention, call))
    }

    fn cached_attention(
        &self,
        qkv: &Self::Act,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&O::KvCache>],
    ) -> Result<(Self::Act, Vec<O::KvCache>), BackendError> {
        let call = |ops: &O| ops.cached_attention(&qkv.values, heads, lengths, caches);
        let (values, caches) = self.time(WorkKind::CachedAttention, call)?;
        Ok((TimedActivations { values, rows: qkv.rows }, caches))
    }

    fn keys_values(
        &self,
        memory: &Self::Act,
        weights: &O::KvProjection,
        heads: usize,
    ) -> Result<O::KvCache, BackendError> {
        let call = |ops: &O| ops.keys_values(&memory.values, weights, heads);
        self.time(WorkKind::KeysAndValues, call)
    }

    fn cross_attention(
        &self,
        query: &Self::Act,
        heads: usize,
        runs: &[RowRun<&O::KvCache>],
    ) -> Result<Self::Act, BackendError> {
        let call = |ops: &O| ops.cross_attention(&query.values, heads, runs);
        with_rows(query.rows, self.time(WorkKind::CrossAttention, call))
    }

    fn attention_weights(
        &self,
        query: &Self::Act,
        heads: usize,
        memory: &Self::Act,
        weights: &O::KvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        self.time(WorkKind::CrossAttention, |ops| {
            ops.attention_weights(&query.values, heads, &memory.values, weights)
        })
    }

    fn select_rows(&self, x: &Self::Act, rows: &[usize]) -> Result<Self::Act, BackendError> {
        with_rows(rows.len(), self.time(WorkKind::Copies, |ops| ops.select_rows(&x.values, rows)))
    }

    fn split_rows(&self, x: &Self::Act, lengths: &[usize]) -> Result<Vec<Self::Act>, BackendError> {
        let split = self.time(WorkKind::Copies, |ops| ops.split_rows(&x.values, lengths))?;
        let parts = split.into_iter().zip(lengths);
        Ok(parts.map(|(values, &rows)| TimedActivations { values, rows }).collect())
    }

    fn images_per_pass(&self, tokens: usize, width: usize) -> usize {
        self.ops.images_per_pass(tokens, width)
    }

    fn feature_bytes(&self, tokens: usize, width: usize) -> u64 {
        self.ops.feature_bytes(tokens, width)
    }

    fn cross_kv_bytes(&self, memory: PersistentKvShape) -> u64 {
        self.ops.cross_kv_bytes(memory)
    }

    fn kv_bytes_per_token(&self, width: usize) -> u64 {
        self.ops.kv_bytes_per_token(width)
    }

    fn to_host(&self, x: &Self::Act) -> Result<Vec<Vec<f32>>, BackendError> {
        self.time(WorkKind::Copies, |ops| ops.to_host(&x.values))
    }

    fn host_rows<'a>(&self, x: &'a Self::Act) -> Result<HostRows<'a>, BackendError> {
        self.time(WorkKind::Copies, |ops| ops.host_rows(&x.values))
    }
}
