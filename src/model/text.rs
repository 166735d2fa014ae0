//! The text tower: a post-norm BERT with cross-attention. The encoder and the decoder consist of the same kind of
//! layer. Source: transformers `BlipTextModel`.
//!
//! Sequences are concatenated, never padded. Self-attention is bidirectional in the encoder, and causal with a KV cache
//! in the decoder. Cross-attention uses cached keys and values (decoding), or encoder states that each layer projects
//! itself (single passes); for text embeddings it is skipped.

use super::config::TextConfig;
use super::error::LoadError;
use super::load::{Loader, Scope};
use super::ops::{Activation, Epilogue, FeedForward, KvLifetime, Ops, RowRun};
use crate::engine::backend::BackendError;
use crate::task::PatchWeights;

/// A text tower, which computes hidden states `[rows, width]` from token ids.
#[derive(Debug)]
pub(super) struct TextTower<O: Ops> {
    word_embeddings: O::Table,
    position_embeddings: O::Table,
    embeddings_norm: O::LayerNorm,
    layers: Vec<TextLayer<O>>,
    heads: usize,
}

#[derive(Debug)]
struct TextLayer<O: Ops> {
    qkv: O::Linear,
    attention_output: O::Linear,
    attention_norm: O::LayerNorm,
    cross: Option<CrossAttentionWeights<O>>,
    intermediate: O::Linear,
    activation: Activation,
    output: O::Linear,
    output_norm: O::LayerNorm,
}

#[derive(Debug)]
struct CrossAttentionWeights<O: Ops> {
    query: O::Linear,
    key_value: O::KvProjection,
    /// The same weights in the form for few rows; see [`CrossAttentionWidth::has_few_row_form`].
    few_row_key_value: Option<O::KvProjection>,
    output: O::Linear,
    norm: O::LayerNorm,
}

/// The width of the encoder states that a tower's cross-attention attends to, and the lifetime of the keys and values
/// computed from them. Both decide how the weights are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct CrossAttentionWidth {
    /// Width of one row of encoder states.
    pub(super) width: usize,
    pub(super) usage: KvLifetime,
    /// True if the weights are also loaded in the form of persistent keys and values, which pays off for few rows.
    pub(super) has_few_row_form: bool,
}

/// New tokens of one sequence, and their position in the sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewTokens<'a> {
    pub(super) tokens: &'a [u32],
    /// Position of the first new token.
    pub(super) position: usize,
}

/// Which tokens self-attention may attend to.
pub(super) enum SelfAttention<'a, O: Ops> {
    /// Every token attends to every token of its sequence (encoders).
    Bidirectional,
    /// Causal attention with a KV cache. Element i holds the caches of all layers for sequence i; it is `None` in the
    /// first step of the sequence.
    Causal(&'a [Option<&'a [O::KvCache]>]),
}

/// What the new rows attend to in cross-attention. The runs in `Cached` and `Project` cover all new rows, in order.
pub(super) enum CrossAttention<'a, O: Ops> {
    /// Cross-attention is skipped.
    Skip,
    /// Keys and values that were computed before, one element per layer.
    Cached(&'a [RowRun<&'a [O::KvCache]>]),
    /// Encoder states `[tokens, memory width]`. Each layer projects them to keys and values, and drops the keys and
    /// values after use.
    Project(&'a [RowRun<&'a O::Act>]),
}

/// Rows whose cross-attention weights are collected during a pass, for explanations.
pub(super) struct Explained<'a, O: Ops> {
    /// Indices among the new rows of the pass.
    pub(super) rows: Vec<usize>,
    /// The encoder states that these rows attend to, `[tokens, memory width]`.
    pub(super) memory: &'a O::Act,
    /// The layers whose weights are averaged.
    pub(super) layers: &'a [u16],
    /// The weights: one vector of `tokens` for each row. Empty before the pass.
    pub(super) weights: Vec<Vec<f32>>,
}

impl<O: Ops> Explained<'_, O> {
    /// Returns the weights of each row over the patches, without the class token.
    pub(super) fn into_patch_weights(self) -> impl Iterator<Item = PatchWeights> {
        self.weights.into_iter().map(|mut weights| {
            weights.drain(..1.min(weights.len()));
            weights
        })
    }

    /// Adds the weights of one layer.
    fn add(&mut self, of_layer: Vec<Vec<f32>>) {
        let share = 1.0 / self.layers.len() as f32;
        if self.weights.is_empty() {
            self.weights = of_layer.iter().map(|row| vec![0.0; row.len()]).collect();
        }
        for (sums, row) in self.weights.iter_mut().zip(of_layer) {
            sums.iter_mut().zip(row).for_each(|(sum, weight)| *sum += weight * share);
        }
    }
}

/// Result of a pass: the hidden states of the new rows and, for causal attention, the extended KV caches of each
/// sequence, one per layer.
pub(super) struct TextOutput<O: Ops> {
    pub(super) hidden: O::Act,
    pub(super) caches: Vec<Vec<O::KvCache>>,
}

impl<O: Ops> TextTower<O> {
    /// Loads a text tower from the tensors under `prefix`: `text_decoder.bert`, `text_encoder` or `text_model`. Without
    /// `memory`, the weights of the cross-attention are not loaded.
    pub(super) fn load(
        loader: &Loader<'_, O>,
        config: &TextConfig,
        prefix: &str,
        memory: Option<CrossAttentionWidth>,
    ) -> Result<Self, LoadError> {
        let scope = Scope::new(prefix);
        let embeddings = scope.child("embeddings");
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        loader.check_heads(width, config.num_attention_heads)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                TextLayer::load(
                    loader,
                    config,
                    &scope.child(&format!("encoder.layer.{index}")),
                    memory,
                )
            })
            .collect::<Result<_, _>>()?;
        let words = loader.word_embeddings(&embeddings.name("word_embeddings.weight"), config)?;
        let positions = [config.max_position_embeddings, width];
        let positions =
            loader.tensor(&embeddings.name("position_embeddings.weight"), &positions)?;
        Ok(Self {
            word_embeddings: loader.table(&words)?,
            position_embeddings: loader.table(&positions)?,
            embeddings_norm: loader.layer_norm(&embeddings.child("LayerNorm"), width, eps)?,
            layers,
            heads: config.num_attention_heads,
        })
    }

    /// Returns the number of layers.
    pub(super) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Computes the cross-attention keys and values of these encoder states for every layer. The result belongs to the
    /// groups that attend to the states.
    pub(super) fn keys_values(
        &self,
        ops: &O,
        memory: &O::Act,
    ) -> Result<Vec<O::KvCache>, BackendError> {
        let cross = self.layers.iter().filter_map(|layer| layer.cross.as_ref());
        cross.map(|cross| ops.keys_values(memory, &cross.key_value, self.heads)).collect()
    }

    /// True if [`few_row_keys_values`](Self::few_row_keys_values) returns keys and values for every layer.
    pub(super) fn has_few_row_form(&self) -> bool {
        self.layers
            .iter()
            .filter_map(|layer| layer.cross.as_ref())
            .all(|cross| cross.few_row_key_value.is_some())
    }

    /// Like [`keys_values`](Self::keys_values), in the form that pays off for few rows. Layers without this form are
    /// left out.
    pub(super) fn few_row_keys_values(
        &self,
        ops: &O,
        memory: &O::Act,
    ) -> Result<Vec<O::KvCache>, BackendError> {
        let cross = self.layers.iter().filter_map(|layer| layer.cross.as_ref());
        let weights = cross.filter_map(|cross| cross.few_row_key_value.as_ref());
        weights.map(|weights| ops.keys_values(memory, weights, self.heads)).collect()
    }

    /// Runs the new tokens of every sequence through all layers.
    pub(super) fn forward(
        &self,
        ops: &O,
        sequences: &[NewTokens<'_>],
        attention: &SelfAttention<'_, O>,
        memory: &CrossAttention<'_, O>,
    ) -> Result<TextOutput<O>, BackendError> {
        self.forward_to(ops, sequences, attention, memory, self.layers.len(), &mut [])
    }

    /// Like [`forward`](Self::forward), but runs only the first `depth` layers: the result is transformers'
    /// `hidden_states[depth]`. Collects the cross-attention weights of the rows in `explained`.
    pub(super) fn forward_to(
        &self,
        ops: &O,
        sequences: &[NewTokens<'_>],
        attention: &SelfAttention<'_, O>,
        memory: &CrossAttention<'_, O>,
        depth: usize,
        explained: &mut [Explained<'_, O>],
    ) -> Result<TextOutput<O>, BackendError> {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens.len()).collect();
        let mut hidden = self.embed(ops, sequences)?;
        let mut caches = vec![Vec::with_capacity(self.layers.len()); sequences.len()];
        for (index, layer) in self.layers.iter().enumerate().take(depth) {
            let qkv = ops.linear(&hidden, &layer.qkv, Epilogue::None)?;
            let context = match attention {
                SelfAttention::Bidirectional => ops.self_attention(&qkv, self.heads, &lengths)?,
                SelfAttention::Causal(past) => {
                    let past: Vec<_> =
                        past.iter().map(|layers| layers.map(|layers| &layers[index])).collect();
                    let (context, new) = ops.cached_attention(&qkv, self.heads, &lengths, &past)?;
                    caches.iter_mut().zip(new).for_each(|(layers, kv)| layers.push(kv));
                    context
                }
            };
            let output =
                ops.linear(&context, &layer.attention_output, Epilogue::Residual(&hidden))?;
            hidden = ops.layer_norm(&output, &layer.attention_norm)?;
            if let Some(cross) = &layer.cross {
                for explained in &mut *explained {
                    if explained.layers.contains(&(index as u16)) {
                        explained.add(cross.weights(ops, &hidden, self.heads, explained)?);
                    }
                }
                hidden = cross.forward(ops, hidden, self.heads, index, memory)?;
            }
            hidden = layer.feed_forward(ops, &hidden)?;
        }
        Ok(TextOutput { hidden, caches })
    }

    fn embed(&self, ops: &O, sequences: &[NewTokens<'_>]) -> Result<O::Act, BackendError> {
        let tokens: Vec<(u32, u32)> = sequences
            .iter()
            .flat_map(|sequence| {
                let positions = sequence.position as u32..;
                sequence.tokens.iter().copied().zip(positions)
            })
            .collect();
        let embedded =
            ops.embed_tokens(&self.word_embeddings, &self.position_embeddings, &tokens)?;
        ops.layer_norm(&embedded, &self.embeddings_norm)
    }
}

impl<O: Ops> TextLayer<O> {
    fn load(
        loader: &Loader<'_, O>,
        config: &TextConfig,
        scope: &Scope,
        memory: Option<CrossAttentionWidth>,
    ) -> Result<Self, LoadError> {
        let (width, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let attention = scope.child("attention.self");
        let packed = ["query", "key", "value"].map(|part| attention.child(part));
        let cross = scope.child("crossattention");
        let cross = memory
            .filter(|_| config.is_decoder)
            .map(|memory| CrossAttentionWeights::load(loader, config, &cross, memory))
            .transpose()?;
        Ok(Self {
            qkv: loader.stacked_linear(&packed, width, width)?,
            attention_output: loader.linear(
                &scope.child("attention.output.dense"),
                width,
                width,
            )?,
            attention_norm: loader.layer_norm(
                &scope.child("attention.output.LayerNorm"),
                width,
                eps,
            )?,
            cross,
            intermediate: loader.linear(&scope.child("intermediate.dense"), inner, width)?,
            activation: config.activation(),
            output: loader.linear(&scope.child("output.dense"), width, inner)?,
            output_norm: loader.layer_norm(&scope.child("output.LayerNorm"), width, eps)?,
        })
    }

    fn feed_forward(&self, ops: &O, x: &O::Act) -> Result<O::Act, BackendError> {
        let layers = FeedForward {
            inner: &self.intermediate,
            activation: self.activation,
            outer: &self.output,
        };
        let output = ops.feed_forward(x, None, layers)?;
        ops.layer_norm(&output, &self.output_norm)
    }
}

impl<O: Ops> CrossAttentionWeights<O> {
    fn load(
        loader: &Loader<'_, O>,
        config: &TextConfig,
        scope: &Scope,
        memory: CrossAttentionWidth,
    ) -> Result<Self, LoadError> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let packed = ["self.key", "self.value"].map(|part| scope.child(part));
        Ok(Self {
            query: loader.linear(&scope.child("self.query"), width, width)?,
            key_value: loader.key_value(&packed, [width, memory.width], heads, memory.usage)?,
            few_row_key_value: memory
                .has_few_row_form
                .then(|| loader.few_row_key_value(&packed, [width, memory.width], heads))
                .transpose()?
                .flatten(),
            output: loader.linear(&scope.child("output.dense"), width, width)?,
            norm: loader.layer_norm(
                &scope.child("output.LayerNorm"),
                width,
                config.layer_norm_eps,
            )?,
        })
    }

    /// Returns the attention weights of the explained rows in this layer, averaged over the heads.
    fn weights(
        &self,
        ops: &O,
        hidden: &O::Act,
        heads: usize,
        explained: &Explained<'_, O>,
    ) -> Result<Vec<Vec<f32>>, BackendError> {
        let rows = ops.select_rows(hidden, &explained.rows)?;
        let query = ops.linear(&rows, &self.query, Epilogue::None)?;
        ops.attention_weights(&query, heads, explained.memory, &self.key_value)
    }

    fn forward(
        &self,
        ops: &O,
        hidden: O::Act,
        heads: usize,
        layer: usize,
        memory: &CrossAttention<'_, O>,
    ) -> Result<O::Act, BackendError> {
        let query = || ops.linear(&hidden, &self.query, Epilogue::None);
        let context = match memory {
            CrossAttention::Skip => return Ok(hidden),
            CrossAttention::Cached(runs) => {
                let runs: Vec<_> = runs
                    .iter()
                    .map(|run| RowRun { memory: &run.memory[layer], rows: run.rows })
                    .collect();
                ops.cross_attention(&query()?, heads, &runs)?
            }
            CrossAttention::Project(runs) => {
                ops.projected_attention(&query()?, &self.key_value, heads, runs)?
            }
        };
        let output = ops.linear(&context, &self.output, Epilogue::Residual(&hidden))?;
        ops.layer_norm(&output, &self.norm)
    }
}
