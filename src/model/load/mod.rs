//! Loads checkpoint files as weights in the form that the operations use.
//!
//! - [`File`]: one file of a checkpoint, on disk or embedded in the binary.
//! - [`CheckpointWeights`]: finds tensors by name in safetensors files (memory-mapped, possibly sharded), PyTorch files
//!   or TensorFlow files.
//! - `Loader`: loads layers by name, and checks every shape against the configuration.

pub(super) mod file;
mod weights;

use std::path::PathBuf;

use candle_core::Tensor;

pub use file::File;
pub use weights::CheckpointWeights;

use super::config::TextConfig;
use super::error::LoadError;
use super::ops::{KvLifetime, Ops, PatchEmbeddingWeights};

/// The files of one checkpoint from which its model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The model configuration, a `config.json`.
    pub config: File,
    /// `preprocessor_config.json` or `processor_config.json`, if the checkpoint has one.
    pub preprocessor: Option<File>,
    /// The files that hold the tensors.
    pub weights: WeightFiles,
}

/// Weight files of a checkpoint: one file or several shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// The file `model.safetensors` or its shards.
    Safetensors(Vec<File>),
    /// The file `pytorch_model.bin` or its shards; reading them executes no code.
    Pickle(Vec<PathBuf>),
    /// The file `tf_model.h5`.
    TensorFlow(PathBuf),
}

/// A prefix of tensor names in the state dict, such as `text_decoder.bert.encoder.layer.3`.
#[derive(Debug, Clone)]
pub(super) struct Scope(String);

impl Scope {
    pub(super) fn new(prefix: &str) -> Self {
        Self(prefix.to_owned())
    }

    pub(super) fn child(&self, name: &str) -> Self {
        Self(self.name(name))
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.0)
    }
}

/// Loader of layers, which reads their tensors and passes them to the operations.
pub(super) struct Loader<'a, O: Ops> {
    weights: &'a CheckpointWeights,
    ops: &'a O,
    /// Called with the number of values of each tensor that is read.
    on_read: &'a dyn Fn(u64),
}

impl<'a, O: Ops> Loader<'a, O> {
    pub(super) fn new(
        weights: &'a CheckpointWeights,
        ops: &'a O,
        on_read: &'a dyn Fn(u64),
    ) -> Self {
        Self { weights, ops, on_read }
    }

    /// True if the checkpoint has a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// Reads the float tensor with this name and shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = self.weights.get(name, shape)?;
        (self.on_read)(tensor.elem_count() as u64);
        Ok(tensor)
    }

    /// Reserves memory for the KV caches of a decoder of this width.
    pub(super) fn reserve_kv_caches(&self, width: usize) -> Result<(), LoadError> {
        Ok(self.ops.reserve_kv_caches(width)?)
    }

    /// Loads the linear layer under `scope`: `weight` `[out, in]` and `bias` `[out]`, where `in` is `width`.
    pub(super) fn linear(
        &self,
        scope: &Scope,
        out: usize,
        width: usize,
    ) -> Result<O::Linear, LoadError> {
        let weight = self.tensor(&scope.name("weight"), &[out, width])?;
        let bias = self.tensor(&scope.name("bias"), &[out])?;
        Ok(self.ops.load_linear(&weight, Some(&bias))?)
    }

    /// Loads the linear layer under `scope` that has a `weight` `[out, in]` but no bias. `in` is `width`.
    pub(super) fn linear_without_bias(
        &self,
        scope: &Scope,
        out: usize,
        width: usize,
    ) -> Result<O::Linear, LoadError> {
        let weight = self.tensor(&scope.name("weight"), &[out, width])?;
        Ok(self.ops.load_linear(&weight, None)?)
    }

    /// Loads n linear layers `[out, in]` as one layer `[n x out, in]`, which needs one matrix product instead of n.
    pub(super) fn stacked_linear(
        &self,
        scopes: &[Scope],
        out: usize,
        width: usize,
    ) -> Result<O::Linear, LoadError> {
        let (weight, bias) = self.stacked(scopes, out, width)?;
        Ok(self.ops.load_linear(&weight, Some(&bias))?)
    }

    /// Loads the projection of encoder states of width `width` to keys and values of width `out` each. The first scope
    /// is that of the keys, the second that of the values.
    pub(super) fn key_value(
        &self,
        scopes: &[Scope; 2],
        [out, width]: [usize; 2],
        heads: usize,
        usage: KvLifetime,
    ) -> Result<O::KvProjection, LoadError> {
        let (weight, bias) = self.stacked(scopes, out, width)?;
        Ok(self.ops.load_key_value(&weight, &bias, heads, usage)?)
    }

    /// Checks that the operations support attention with this number of heads.
    pub(super) fn check_heads(&self, width: usize, heads: usize) -> Result<(), LoadError> {
        Ok(self.ops.check_heads(width, heads)?)
    }

    /// Like [`key_value`](Self::key_value), in the form of persistent keys and values; `None` if the operations have
    /// only one form.
    pub(super) fn few_row_key_value(
        &self,
        scopes: &[Scope; 2],
        [out, width]: [usize; 2],
        heads: usize,
    ) -> Result<Option<O::KvProjection>, LoadError> {
        if !self.ops.has_few_row_form() {
            return Ok(None);
        }
        self.key_value(scopes, [out, width], heads, KvLifetime::Persistent).map(Some)
    }

    /// Returns the weights of n linear layers, concatenated as `[n x out, in]`, and their biases, as `[n x out]`.
    fn stacked(
        &self,
        scopes: &[Scope],
        out: usize,
        width: usize,
    ) -> Result<(Tensor, Tensor), LoadError> {
        let part = |suffix: &str, shape: &[usize]| {
            let tensors = scopes.iter().map(|scope| self.tensor(&scope.name(suffix), shape));
            let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
            Tensor::cat(&tensors, 0).map_err(|error| LoadError::Backend(error.into()))
        };
        Ok((part("weight", &[out, width])?, part("bias", &[out])?))
    }

    /// Loads the layer norm under `scope`: `weight` and `bias`, both `[width]`.
    pub(super) fn layer_norm(
        &self,
        scope: &Scope,
        width: usize,
        eps: f64,
    ) -> Result<O::LayerNorm, LoadError> {
        let weight = self.tensor(&scope.name("weight"), &[width])?;
        let bias = self.tensor(&scope.name("bias"), &[width])?;
        Ok(self.ops.load_layer_norm(&weight, &bias, eps)?)
    }

    /// Loads an embedding table `[n, width]`.
    pub(super) fn table(&self, table: &Tensor) -> Result<O::Table, LoadError> {
        Ok(self.ops.load_table(table)?)
    }

    /// Loads the patch embedding; see [`PatchEmbeddingWeights`].
    pub(super) fn patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<O::PatchEmbedding, LoadError> {
        Ok(self.ops.load_patch_embedding(weights)?)
    }

    /// Reads the word embeddings `[vocabulary, width]`. A file with tied weights may contain only the weight of the LM
    /// head, which is the same tensor.
    pub(super) fn word_embeddings(
        &self,
        name: &str,
        config: &TextConfig,
    ) -> Result<Tensor, LoadError> {
        let shape = [config.vocab_size, config.hidden_size];
        let head = name
            .strip_suffix("bert.embeddings.word_embeddings.weight")
            .map(|prefix| format!("{prefix}cls.predictions.decoder.weight"));
        match head {
            Some(head) if !self.weights.contains(name) && self.weights.contains(&head) => {
                self.tensor(&head, &shape)
            }
            _ => self.tensor(name, &shape),
        }
    }

    /// Loads the output layer of the LM head under `text_decoder`. The names in the file depend on the version of
    /// transformers that wrote it. The weight is `decoder.weight` if present, otherwise the word embeddings (tied
    /// weights). The bias is `decoder.bias` if present, otherwise `bias`.
    pub(super) fn lm_output(&self, config: &TextConfig) -> Result<O::Linear, LoadError> {
        let decoder = Scope::new("text_decoder");
        let head = decoder.child("cls.predictions");
        let shape = [config.vocab_size, config.hidden_size];
        let weight = if self.weights.contains(&head.name("decoder.weight")) {
            self.tensor(&head.name("decoder.weight"), &shape)?
        } else {
            self.tensor(&decoder.name("bert.embeddings.word_embeddings.weight"), &shape)?
        };
        let bias = if self.weights.contains(&head.name("decoder.bias")) {
            self.tensor(&head.name("decoder.bias"), &[config.vocab_size])?
        } else {
            self.tensor(&head.name("bias"), &[config.vocab_size])?
        };
        Ok(self.ops.load_linear(&weight, Some(&bias))?)
    }
}
