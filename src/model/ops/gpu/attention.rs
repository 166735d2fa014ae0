//! Attention on a GPU: bidirectional, causal with the KV cache, and across encoder states.

use std::sync::Arc;

use super::kv_cache::{CachedRows, Step};
use super::linear::{Output, Sums};
use super::{GpuActivations, GpuLinear, GpuOps};
use crate::engine::backend::BackendError;
use crate::gpu::device::{Address, Product};
use crate::gpu::heap::Buffer;
use crate::gpu::kernels::attention::{self, Attention, AttentionWeights};
use crate::gpu::kernels::folded::{self, Heads};
use crate::model::ops::RowRun;

/// Weights that project encoder states to keys and values, `[2 x width, states width]`.
#[derive(Debug)]
pub struct GpuKvProjection(Arc<GpuLinear>);

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone)]
pub enum GpuKvCache {
    /// Keys and values of text that is being generated.
    Rows(CachedRows),
    /// Encoder states, with the projections that are folded into queries and results.
    States(AttendedStates),
}

/// Encoder states `[tokens, width]` that decoding rows attend to in one layer.
#[derive(Debug, Clone)]
pub struct AttendedStates {
    states: Arc<Buffer>,
    tokens: usize,
    projection: Arc<GpuLinear>,
}

impl GpuKvProjection {
    pub(super) fn new(linear: GpuLinear) -> Self {
        Self(Arc::new(linear))
    }
}

impl GpuKvCache {
    pub(super) fn of_states(
        states: Arc<Buffer>,
        tokens: usize,
        GpuKvProjection(projection): &GpuKvProjection,
    ) -> Self {
        Self::States(AttendedStates { states, tokens, projection: Arc::clone(projection) })
    }
}

impl GpuOps {
    pub(super) fn attend_bidirectionally(
        &self,
        qkv: &GpuActivations,
        heads: usize,
        lengths: &[usize],
    ) -> Result<GpuActivations, BackendError> {
        let width = qkv.width() / 3;
        let mut sequences = Vec::with_capacity(4 * lengths.len());
        let mut start = 0;
        for &rows in lengths {
            sequences.extend([start, rows, start, rows]);
            start += rows;
        }
        let sequences = self.place_ints(&sequences)?;
        let rows = self.narrow(qkv)?;
        let value_bytes = self.format.bytes();
        let out = self.narrow_buffer(qkv.launched() * width)?;
        attention::attention(
            self.device(),
            self.format,
            Attention {
                query: rows.address(),
                key: rows.address().offset(width * value_bytes),
                value: rows.address().offset(2 * width * value_bytes),
                out: out.address(),
                query_stride: qkv.width(),
                kv_stride: qkv.width(),
                sequences: sequences.address(),
                sequence_count: lengths.len(),
                most_queries: lengths.iter().copied().max().unwrap_or(0),
                heads,
                head_width: width / heads,
                causal: false,
            },
        )?;
        Ok(self.narrow_act(qkv.rows(), width, out))
    }

    pub(super) fn attend_causally(
        &self,
        qkv: &GpuActivations,
        heads: usize,
        lengths: &[usize],
        caches: &[Option<&GpuKvCache>],
    ) -> Result<(GpuActivations, Vec<GpuKvCache>), BackendError> {
        let width = qkv.width() / 3;
        let caches: Vec<_> = caches
            .iter()
            .map(|cache| match cache {
                Some(GpuKvCache::Rows(rows)) => Ok(Some(rows)),
                Some(GpuKvCache::States(_)) => Err(wrong_form()),
                None => Ok(None),
            })
            .collect::<Result<_, _>>()?;
        let pool = self.page_pool(width)?;
        let mut step = Step::extend(&pool, lengths, &caches)?;
        step.fill_up(self.memory.launched(lengths.len()));
        let kv = self.paged_kv(&pool, &step, heads, width)?;
        let rows = self.wide(qkv)?;
        attention::append_kv(self.device(), self.format, rows.address(), kv.arguments)?;
        let out = self.narrow_buffer(qkv.launched() * width)?;
        let (from, to) = (rows.address(), out.address());
        attention::paged_attention(self.device(), self.format, from, to, kv.arguments)?;
        let caches = step.into_caches().into_iter().map(GpuKvCache::Rows).collect();
        Ok((self.narrow_act(qkv.rows(), width, out), caches))
    }

    /// Computes cross-attention over encoder states, with the projections folded into queries and results. All runs
    /// belong to one layer, so they have the same projections.
    pub(super) fn attend_to_states(
        &self,
        query: &GpuActivations,
        heads: usize,
        runs: &[RowRun<&GpuKvCache>],
    ) -> Result<GpuActivations, BackendError> {
        let (rows, width) = (query.launched(), query.width());
        let mut attended = Vec::with_capacity(16 * rows);
        let mut projection = None;
        for run in runs {
            let GpuKvCache::States(states) = run.memory else { return Err(wrong_form()) };
            projection = Some(&states.projection);
            let row = [states.states.address().0, states.tokens as u64];
            let row: Vec<u8> = row.into_iter().flat_map(u64::to_le_bytes).collect();
            (0..run.rows).for_each(|_| attended.extend_from_slice(&row));
        }
        let Some(projection) = projection else {
            return Ok(self.narrow_act(0, width, self.narrow_buffer(0)?));
        };
        let states_width = projection.k;
        let of = Heads { heads, head_width: width / heads, states_width };
        // The rows that fill up the pass attend to 0 tokens.
        attended.resize(16 * rows, 0);
        let states = self.place(attended)?;
        let folded = self.narrow_buffer(rows * heads * states_width)?;
        let context = self.narrow_buffer(rows * heads * states_width)?;
        let out = self.narrow_buffer(rows * width)?;
        let key = projection.weight.address();
        let value = key.offset(width * states_width * self.format.bytes());
        let bias = value_bias(projection, width);
        let rows_asked = query.rows();
        let query = self.wide(query)?;
        let (device, format) = (self.device(), self.format);
        folded::fold_query(device, format, [query.address(), key, folded.address()], rows, of)?;
        let pointers = [folded.address(), states.address(), context.address()];
        folded::folded_attention(device, format, pointers, rows, of)?;
        let pointers = [context.address(), value, bias, out.address()];
        folded::project_values(device, format, pointers, rows, of)?;
        Ok(self.narrow_act(rows_asked, width, out))
    }

    /// Computes cross-attention over encoder states that are projected to keys and values first.
    pub(super) fn attend_to_projections(
        &self,
        query: &GpuActivations,
        GpuKvProjection(projection): &GpuKvProjection,
        heads: usize,
        runs: &[RowRun<&GpuActivations>],
    ) -> Result<GpuActivations, BackendError> {
        let (rows, width) = (query.rows(), query.width());
        let parts: Vec<&GpuActivations> = runs.iter().map(|run| run.memory).collect();
        let tokens: usize = parts.iter().map(|part| part.rows()).sum();
        let states = self.concatenated(&parts)?;
        let kv = self.narrow_buffer(tokens * 2 * width)?;
        let into = Output::narrow(kv.address());
        self.product(states.address(), tokens, projection, into, Sums::Fastest)?;
        let mut sequences = Vec::with_capacity(4 * runs.len());
        let (mut row, mut token) = (0, 0);
        for run in runs {
            let (rows, tokens) = (run.rows, run.memory.rows());
            sequences.extend([row, rows, token, tokens]);
            (row, token) = (row + rows, token + tokens);
        }
        let sequences = self.place_ints(&sequences)?;
        let query = self.narrow(query)?;
        let out = self.narrow_buffer(rows * width)?;
        attention::attention(
            self.device(),
            self.format,
            Attention {
                query: query.address(),
                key: kv.address(),
                value: kv.address().offset(width * self.format.bytes()),
                out: out.address(),
                query_stride: width,
                kv_stride: 2 * width,
                sequences: sequences.address(),
                sequence_count: runs.len(),
                most_queries: runs.iter().map(|run| run.rows).max().unwrap_or(0),
                heads,
                head_width: width / heads,
                causal: false,
            },
        )?;
        Ok(self.narrow_act(rows, width, out))
    }

    /// Returns the attention weights of `query` over `memory`, averaged over the heads.
    pub(super) fn weights_over_states(
        &self,
        query: &GpuActivations,
        heads: usize,
        memory: &GpuActivations,
        GpuKvProjection(projection): &GpuKvProjection,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let (rows, width, tokens) = (query.rows(), query.width(), memory.rows());
        let (query, memory) = (self.wide(query)?, self.narrow(memory)?);
        let keys = self.narrow_buffer(tokens * width)?;
        // The bias of the keys adds the same to all scores of a query and head, so softmax cancels it.
        self.device().product(&Product {
            format: self.format,
            out_format: self.format,
            m: tokens,
            n: width,
            k: projection.k,
            x: memory.address(),
            w: projection.weight.address(),
            bias: None,
            residual: None,
            out: keys.address(),
        })?;
        let out = self.wide_buffer(rows * tokens)?;
        attention::attention_weights(
            self.device(),
            self.format,
            AttentionWeights {
                query: query.address(),
                key: keys.address(),
                key_stride: width,
                out: out.address(),
                rows,
                tokens,
                heads,
                head_width: width / heads,
            },
        )?;
        let weights = self.fetch(out.address(), rows * tokens)?;
        Ok(weights.chunks_exact(tokens).map(<[f32]>::to_vec).collect())
    }
}

/// Returns the address of the biases of the values, in f32.
fn value_bias(projection: &GpuLinear, width: usize) -> Address {
    let bias = projection.bias.as_ref().map(|bias| bias.wide.address());
    bias.map_or(Address::NULL, |bias| bias.offset(width * size_of::<f32>()))
}

fn wrong_form() -> BackendError {
    BackendError::Device("keys and values of another kind of attention".to_owned())
}
