//! The vision tower: a pre-norm vision transformer, with query, key and value packed in one linear layer. Source:
//! transformers `BlipVisionModel`.

use std::sync::Arc;

use super::checkpoint::VISION_MODEL;
use super::config::VisionConfig;
use super::error::LoadError;
use super::load::{Loader, Scope};
use super::ops::{Activation, Epilogue, FeedForward, Ops, PassKey, PatchEmbeddingWeights};
use super::positions::interpolated;
use super::preprocessor::Preprocessor;
use crate::engine::backend::BackendError;
use crate::task::Pixels;

/// A vision tower, which computes image features `[tokens, width]` from pixels of one size.
#[derive(Debug)]
pub(super) struct VisionTower<O: Ops> {
    patch_embedding: O::PatchEmbedding,
    encoder: Arc<VisionEncoder<O>>,
    tokens: usize,
}

/// The part of a vision tower that does not depend on the image size. Towers for several sizes share it.
#[derive(Debug)]
pub(super) struct VisionEncoder<O: Ops> {
    layers: Vec<VisionLayer<O>>,
    post_layernorm: O::LayerNorm,
    heads: usize,
    width: usize,
}

#[derive(Debug)]
struct VisionLayer<O: Ops> {
    layer_norm1: O::LayerNorm,
    qkv: O::Linear,
    projection: O::Linear,
    layer_norm2: O::LayerNorm,
    fc1: O::Linear,
    activation: Activation,
    fc2: O::Linear,
}

impl<O: Ops> VisionTower<O> {
    /// Loads a vision tower from the tensors under `vision_model.`. If its encoder has already been loaded for another
    /// image size, `encoder` is that encoder. The image size is that of the preprocessor; if it differs from the
    /// configuration's, the position embeddings are interpolated.
    pub(super) fn load(
        loader: &Loader<'_, O>,
        config: &VisionConfig,
        preprocessor: &Preprocessor,
        encoder: Option<Arc<VisionEncoder<O>>>,
    ) -> Result<Self, LoadError> {
        let width = config.hidden_size;
        let embeddings = Scope::new(VISION_MODEL).child("embeddings");
        let patch = config.patch_size;
        let (from, to) =
            (config.image_size / patch, preprocessor.preprocessing.width as usize / patch);
        let mut position_embedding =
            loader.tensor(&embeddings.name("position_embedding"), &[1, config.tokens(), width])?;
        if from != to {
            position_embedding = interpolated(&position_embedding, from, to)
                .map_err(|error| LoadError::Backend(error.into()))?;
        }
        let patch_embedding = loader.patch_embedding(&PatchEmbeddingWeights {
            weight: loader
                .tensor(&embeddings.name("patch_embedding.weight"), &[width, 3, patch, patch])?,
            bias: loader.tensor(&embeddings.name("patch_embedding.bias"), &[width])?,
            class_embedding: loader.tensor(&embeddings.name("class_embedding"), &[1, 1, width])?,
            position_embedding,
            mean: preprocessor.mean,
            std: preprocessor.std,
            rescale: preprocessor.rescale_factor,
        })?;
        let encoder = match encoder {
            Some(encoder) => encoder,
            None => Arc::new(VisionEncoder::load(loader, config)?),
        };
        Ok(Self { patch_embedding, encoder, tokens: to * to + 1 })
    }

    /// Returns the part of the tower that does not depend on the image size.
    pub(super) fn encoder(&self) -> &Arc<VisionEncoder<O>> {
        &self.encoder
    }

    /// Returns the number of tokens per image, including the class token.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the width of one feature row.
    pub(super) fn width(&self) -> usize {
        self.encoder.width
    }

    /// Returns the features `[tokens, width]` of each image: those after the final layer norm (transformers'
    /// `last_hidden_state`), or with `layer` those of `hidden_states[layer]`, which are not normalised.
    pub(super) fn encode(
        &self,
        ops: &O,
        images: &[&Pixels],
        layer: Option<usize>,
    ) -> Result<Vec<O::Act>, BackendError> {
        let together = ops.images_per_pass(self.tokens, self.width());
        let mut features = Vec::with_capacity(images.len());
        for images in images.chunks(together) {
            features.extend(self.encode_together(ops, images, layer)?);
        }
        Ok(features)
    }

    fn encode_together(
        &self,
        ops: &O,
        images: &[&Pixels],
        layer: Option<usize>,
    ) -> Result<Vec<O::Act>, BackendError> {
        let lengths = vec![self.tokens; images.len()];
        let tower = std::ptr::from_ref(self).addr();
        let key = PassKey::Vision { tower, images: images.len(), layer };
        let x = ops.pass(key, || {
            let mut x = ops.patch_embedding(&self.patch_embedding, images)?;
            let depth = layer.unwrap_or(self.encoder.layers.len());
            for layer in self.encoder.layers.iter().take(depth) {
                x = layer.forward(ops, &x, self.encoder.heads, &lengths)?;
            }
            match layer {
                Some(_) => Ok(x),
                None => ops.layer_norm(&x, &self.encoder.post_layernorm),
            }
        })?;
        ops.split_rows(&x, &lengths)
    }

    /// Returns transformers' `pooler_output`, `[1, width]`: the `[CLS]` row, with `post_layernorm` applied a second
    /// time.
    pub(super) fn pool(&self, ops: &O, features: &O::Act) -> Result<O::Act, BackendError> {
        ops.layer_norm(&ops.select_rows(features, &[0])?, &self.encoder.post_layernorm)
    }
}

impl<O: Ops> VisionEncoder<O> {
    fn load(loader: &Loader<'_, O>, config: &VisionConfig) -> Result<Self, LoadError> {
        let (scope, width) = (Scope::new(VISION_MODEL), config.hidden_size);
        loader.check_heads(width, config.num_attention_heads)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                VisionLayer::load(loader, config, &scope.child(&format!("encoder.layers.{index}")))
            })
            .collect::<Result<_, _>>()?;
        let norm = scope.child("post_layernorm");
        Ok(Self {
            layers,
            post_layernorm: loader.layer_norm(&norm, width, config.layer_norm_eps)?,
            heads: config.num_attention_heads,
            width,
        })
    }
}

impl<O: Ops> VisionLayer<O> {
    fn load(
        loader: &Loader<'_, O>,
        config: &VisionConfig,
        scope: &Scope,
    ) -> Result<Self, LoadError> {
        let (width, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: loader.layer_norm(&scope.child("layer_norm1"), width, eps)?,
            qkv: loader.linear(&scope.child("self_attn.qkv"), 3 * width, width)?,
            projection: loader.linear(&scope.child("self_attn.projection"), width, width)?,
            layer_norm2: loader.layer_norm(&scope.child("layer_norm2"), width, eps)?,
            fc1: loader.linear(&scope.child("mlp.fc1"), inner, width)?,
            activation: config.activation(),
            fc2: loader.linear(&scope.child("mlp.fc2"), width, inner)?,
        })
    }

    fn forward(
        &self,
        ops: &O,
        x: &O::Act,
        heads: usize,
        lengths: &[usize],
    ) -> Result<O::Act, BackendError> {
        let qkv = ops.normed_linear(x, &self.layer_norm1, &self.qkv)?;
        let context = ops.self_attention(&qkv, heads, lengths)?;
        let x = ops.linear(&context, &self.projection, Epilogue::Residual(x))?;
        let layers =
            FeedForward { inner: &self.fc1, activation: self.activation, outer: &self.fc2 };
        ops.feed_forward(&x, Some(&self.layer_norm2), layers)
    }
}
