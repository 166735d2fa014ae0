//! Checkpoint files to weights in the operations' own form.
//!
//! - [`File`]: a checkpoint's file, on disk or inside the binary.
//! - [`Weights`]: tensors by name from safetensors (mapped, sharded too) or PyTorch files.
//! - `Loader`: layers by name, with every shape checked against the configuration.

mod file;
mod weights;

use std::path::PathBuf;

use candle_core::Tensor;

pub use file::File;
pub use weights::Weights;

use super::config::TextConfig;
use super::error::LoadError;
use super::ops::{MemoryUse, Ops, PatchEmbeddingWeights};

/// The files of one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// `config.json`.
    pub config: File,
    /// `preprocessor_config.json` or `processor_config.json`, where there is one.
    pub preprocessor: Option<File>,
    /// The weights.
    pub weights: WeightFiles,
}

/// The weights' files, one or several shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightFiles {
    /// `model.safetensors` or its shards.
    Safetensors(Vec<File>),
    /// `pytorch_model.bin` or its shards; read without executing anything.
    Pickle(Vec<PathBuf>),
}

/// A place in the state dict: `text_decoder.bert.encoder.layer.3`.
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

/// Takes layers out of the weights and hands them to the operations.
pub(super) struct Loader<'a, O: Ops> {
    weights: &'a Weights,
    ops: &'a O,
    /// Told how many values each tensor has.
    on_read: &'a dyn Fn(u64),
}

impl<'a, O: Ops> Loader<'a, O> {
    pub(super) fn new(weights: &'a Weights, ops: &'a O, on_read: &'a dyn Fn(u64)) -> Self {
        Self { weights, ops, on_read }
    }

    /// A tensor of floats with this name and shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let tensor = self.weights.get(name, shape)?;
        (self.on_read)(tensor.elem_count() as u64);
        Ok(tensor)
    }

    /// `weight` `[out, in]` and `bias` `[out]` under `scope`.
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

    /// `weight` `[out, in]` under `scope`, no bias.
    pub(super) fn linear_without_bias(
        &self,
        scope: &Scope,
        out: usize,
        width: usize,
    ) -> Result<O::Linear, LoadError> {
        let weight = self.tensor(&scope.name("weight"), &[out, width])?;
        Ok(self.ops.load_linear(&weight, None)?)
    }

    /// Several layers `[out, in]` as one `[n x out, in]`: one product instead of n.
    pub(super) fn stacked_linear(
        &self,
        scopes: &[Scope],
        out: usize,
        width: usize,
    ) -> Result<O::Linear, LoadError> {
        let (weight, bias) = self.stacked(scopes, out, width)?;
        Ok(self.ops.load_linear(&weight, Some(&bias))?)
    }

    /// The weights that make keys and values `[out]` each of a memory `[width]`: those under the two scopes.
    pub(super) fn key_value(
        &self,
        scopes: &[Scope; 2],
        [out, width]: [usize; 2],
        heads: usize,
        usage: MemoryUse,
    ) -> Result<O::KeyValue, LoadError> {
        let (weight, bias) = self.stacked(scopes, out, width)?;
        Ok(self.ops.load_key_value(&weight, &bias, heads, usage)?)
    }

    /// Weights `[n x out, in]` and biases `[n x out]` of several layers.
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

    /// `weight` and `bias` `[width]` under `scope`.
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

    /// A table `[n, width]`.
    pub(super) fn table(&self, table: &Tensor) -> Result<O::Table, LoadError> {
        Ok(self.ops.load_table(table)?)
    }

    /// See [`PatchEmbeddingWeights`].
    pub(super) fn patch_embedding(
        &self,
        weights: &PatchEmbeddingWeights,
    ) -> Result<O::PatchEmbedding, LoadError> {
        Ok(self.ops.load_patch_embedding(weights)?)
    }

    /// Word embeddings `[vocabulary, width]`; a file that ties its head may hold only the head's weight.
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

    /// The LM head's output layer under `text_decoder`. Which names a file holds differs by the version
    /// of transformers that wrote it: `decoder.weight` where present, else the word embeddings (tied);
    /// `decoder.bias` where present, else `bias`.
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
