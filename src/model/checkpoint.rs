//! The BLIP model classes of transformers, assembled from towers and heads.

use std::sync::Arc;

use super::config::{BlipConfig, TextConfig};
use super::error::LoadError;
use super::heads::TextDecoder;
use super::load::{Loader, Scope};
use super::ops::{Activation, Epilogue, KvLifetime, Ops};
use super::text::{
    CrossAttention, CrossAttentionWidth, Explained, NewTokens, SelfAttention, TextTower,
};
use super::vision::VisionTower;
use crate::engine::backend::BackendError;
use crate::task::{Embedding, MatchLogits, ModelClass, Pooling};

/// Prefix of the text encoder's tensors in the state dict of models for question answering and for retrieval.
pub(super) const TEXT_ENCODER: &str = "text_encoder";
/// Prefix of the text encoder's tensors in the state dict of a `BlipModel`.
pub(super) const TEXT_MODEL: &str = "text_model";
/// Prefix of the vision tower's tensors in every state dict but that of a `BlipVisionModel`.
pub(super) const VISION_MODEL: &str = "vision_model";

/// A model without its vision tower, which is stored separately because several models may share it. Models for
/// question answering and for retrieval may also share their text encoder, which is therefore in an `Arc`.
#[derive(Debug)]
pub(super) enum Checkpoint<O: Ops> {
    /// Captioning, transformers' class `BlipForConditionalGeneration`.
    Caption { decoder: TextDecoder<O> },
    /// Visual question answering, transformers' class `BlipForQuestionAnswering`.
    Vqa { encoder: Arc<TextTower<O>>, decoder: TextDecoder<O> },
    /// Image-text matching and retrieval, transformers' class `BlipForImageTextRetrieval`.
    Retrieval(Box<Retrieval<O>>),
    /// Embeddings only, without an image-text matching head: transformers' class `BlipModel`.
    Base(Box<Base<O>>),
    /// A vision tower alone: transformers' class `BlipVisionModel`.
    Vision,
    /// A text encoder alone: transformers' class `BlipTextModel`.
    Text(Box<Text<O>>),
}

#[derive(Debug)]
pub(super) struct Retrieval<O: Ops> {
    pub(super) encoder: Arc<TextTower<O>>,
    vision_proj: O::Linear,
    text_proj: O::Linear,
    itm_head: O::Linear,
}

#[derive(Debug)]
pub(super) struct Text<O: Ops> {
    pub(super) encoder: TextTower<O>,
    /// Pools the `[CLS]` state of the encoder. A `BlipTextModel` may have been built without it, as in models for question
    /// answering and for retrieval.
    pooler: Option<O::Linear>,
}

#[derive(Debug)]
pub(super) struct Base<O: Ops> {
    pub(super) text: Text<O>,
    visual_projection: O::Linear,
    text_projection: O::Linear,
}

impl<O: Ops> Checkpoint<O> {
    /// Loads a model of this class, without its vision tower. If the same text encoder has already been loaded for
    /// another model (question answering and retrieval only), `encoder` is that encoder.
    pub(super) fn load(
        loader: &Loader<'_, O>,
        config: &BlipConfig,
        class: ModelClass,
        encoder: Option<Arc<TextTower<O>>>,
    ) -> Result<Self, LoadError> {
        let (text, vision) = (&config.text_config, config.vision_config.hidden_size);
        let width = text.hidden_size;
        let passing = CrossAttentionWidth {
            width: vision,
            usage: KvLifetime::Transient,
            has_few_row_form: false,
        };
        let encoding = CrossAttentionWidth { has_few_row_form: true, ..passing };
        let text_encoder = || match encoder {
            Some(encoder) => Ok(encoder),
            None => TextTower::load(loader, text, TEXT_ENCODER, Some(encoding)).map(Arc::new),
        };
        Ok(match class {
            ModelClass::ConditionalGeneration => {
                let kept = CrossAttentionWidth { usage: KvLifetime::Persistent, ..passing };
                Self::Caption { decoder: TextDecoder::load(loader, text, kept)? }
            }
            ModelClass::QuestionAnswering => Self::Vqa {
                encoder: text_encoder()?,
                // The decoder attends to question states, which have the text width. But transformers builds both text
                // towers from one configuration, so the weights of the decoder's cross-attention have the vision width.
                // Therefore, in transformers, the text width of a VQA model always equals its vision width.
                decoder: TextDecoder::load(loader, text, passing)?,
            },
            ModelClass::ImageTextRetrieval => {
                let size = config.image_text_hidden_size;
                Self::Retrieval(Box::new(Retrieval {
                    encoder: text_encoder()?,
                    vision_proj: loader.linear(&Scope::new("vision_proj"), size, vision)?,
                    text_proj: loader.linear(&Scope::new("text_proj"), size, width)?,
                    itm_head: loader.linear(&Scope::new("itm_head"), 2, width)?,
                }))
            }
            ModelClass::Base => {
                let size = config.projection_dim;
                let visual = Scope::new("visual_projection");
                let textual = Scope::new("text_projection");
                Self::Base(Box::new(Base {
                    text: Text::load(loader, text, Some(encoding), false)?,
                    visual_projection: loader.linear_without_bias(&visual, size, vision)?,
                    text_projection: loader.linear_without_bias(&textual, size, width)?,
                }))
            }
            ModelClass::Vision => Self::Vision,
            // There is no image to attend to.
            ModelClass::Text => Self::Text(Box::new(Text::load(loader, text, None, true)?)),
        })
    }

    /// Returns the text encoder if models of this class may share it, otherwise `None`.
    pub(super) fn text_encoder(&self) -> Option<&Arc<TextTower<O>>> {
        match self {
            Self::Vqa { encoder, .. } => Some(encoder),
            Self::Retrieval(retrieval) => Some(&retrieval.encoder),
            Self::Caption { .. } | Self::Base(_) | Self::Vision | Self::Text(_) => None,
        }
    }

    /// True if the class pools the `[CLS]` state of its text encoder, and has the weights for it.
    pub(super) fn has_text_pooler(&self) -> bool {
        match self {
            Self::Base(base) => base.text.pooler.is_some(),
            Self::Text(text) => text.pooler.is_some(),
            Self::Caption { .. } | Self::Vqa { .. } | Self::Retrieval(_) | Self::Vision => false,
        }
    }

    /// Returns the decoder, or `None` if this class does not generate text.
    pub(super) fn decoder(&self) -> Option<&TextDecoder<O>> {
        match self {
            Self::Caption { decoder } | Self::Vqa { decoder, .. } => Some(decoder),
            Self::Retrieval(_) | Self::Base(_) | Self::Vision | Self::Text(_) => None,
        }
    }

    /// Returns the text encoder, or `None` if this class has none.
    pub(super) fn encoder(&self) -> Option<&TextTower<O>> {
        match self {
            Self::Caption { .. } | Self::Vision => None,
            Self::Vqa { encoder, .. } => Some(encoder),
            Self::Retrieval(retrieval) => Some(&retrieval.encoder),
            Self::Base(base) => Some(&base.text.encoder),
            Self::Text(text) => Some(&text.encoder),
        }
    }

    /// Returns states of an image, or their projection, not normalised. `tower` computed `features`, which are those of the
    /// wanted layer. The projection is that of the `[CLS]` row (retrieval), or of the pooled row (`BlipModel`).
    pub(super) fn embed_image(
        &self,
        ops: &O,
        tower: &VisionTower<O>,
        features: &O::Act,
        pooling: Pooling,
    ) -> Result<Embedding, BackendError> {
        let class = || ops.select_rows(features, &[0]);
        let row = match (pooling, self) {
            (Pooling::Projection, Self::Retrieval(retrieval)) => {
                ops.linear(&class()?, &retrieval.vision_proj, Epilogue::None)?
            }
            (Pooling::Projection, Self::Base(base)) => {
                let pooled = tower.pool(ops, features)?;
                ops.linear(&pooled, &base.visual_projection, Epilogue::None)?
            }
            (Pooling::Projection, _) => return Err(without("embeddings")),
            (Pooling::Pooler, _) => tower.pool(ops, features)?,
            (Pooling::Cls, _) => class()?,
            (Pooling::Mean, _) => return Ok(mean(&ops.to_host(features)?)),
            (Pooling::None, _) => return Ok(all(ops.to_host(features)?)),
        };
        Ok(first_embedding(ops.to_host(&row)?))
    }

    /// Returns transformers' `pooler_output` of texts, whose `[CLS]` states are `class`.
    pub(super) fn pool_texts(
        &self,
        ops: &O,
        class: &O::Act,
    ) -> Result<Vec<Embedding>, BackendError> {
        let text = match self {
            Self::Base(base) => &base.text,
            Self::Text(text) => text,
            Self::Caption { .. } | Self::Vqa { .. } | Self::Retrieval(_) | Self::Vision => {
                return Err(without("a text pooler"));
            }
        };
        Ok(embeddings(ops.to_host(&text.pool(ops, class)?)?))
    }

    /// Returns the text embeddings, not normalised. `class` holds the `[CLS]` states `[rows, width]` of texts that were
    /// encoded without an image.
    pub(super) fn project_texts(
        &self,
        ops: &O,
        class: &O::Act,
    ) -> Result<Vec<Embedding>, BackendError> {
        let projected = match self {
            Self::Retrieval(retrieval) => {
                ops.linear(class, &retrieval.text_proj, Epilogue::None)?
            }
            Self::Base(base) => base.project(ops, class)?,
            Self::Caption { .. } | Self::Vqa { .. } | Self::Vision | Self::Text(_) => {
                return Err(without("embeddings"));
            }
        };
        Ok(embeddings(ops.to_host(&projected)?))
    }

    /// Returns the multimodal embeddings, not normalised. `class` holds the `[CLS]` states of texts that were encoded
    /// with cross-attention to their image. For retrieval, these states are the embeddings, as in LAVIS' multimodal
    /// features. For `BlipModel`, the states are pooled and projected (`BlipModel.get_multimodal_features`).
    pub(super) fn project_multimodal(
        &self,
        ops: &O,
        class: &O::Act,
    ) -> Result<Vec<Embedding>, BackendError> {
        match self {
            Self::Retrieval(_) => Ok(embeddings(ops.to_host(class)?)),
            Self::Base(base) => Ok(embeddings(ops.to_host(&base.project(ops, class)?)?)),
            Self::Caption { .. } | Self::Vqa { .. } | Self::Vision | Self::Text(_) => {
                Err(without("embeddings"))
            }
        }
    }

    /// Returns the outputs of the matching head for each text. `class` holds the `[CLS]` states of texts that were
    /// encoded with cross-attention to their image.
    pub(super) fn match_logits(
        &self,
        ops: &O,
        class: &O::Act,
    ) -> Result<Vec<MatchLogits>, BackendError> {
        let Self::Retrieval(retrieval) = self else { return Err(without("a matching head")) };
        let logits = ops.to_host(&ops.linear(class, &retrieval.itm_head, Epilogue::None)?)?;
        Ok(logits.iter().map(|row| MatchLogits { no_match: row[0], is_match: row[1] }).collect())
    }
}

impl<O: Ops> Text<O> {
    /// Loads an encoder with its pooler from the tensors under `text_model.`. If `may_lack_pooler` is set, the pooler may be
    /// missing.
    fn load(
        loader: &Loader<'_, O>,
        config: &TextConfig,
        memory: Option<CrossAttentionWidth>,
        may_lack_pooler: bool,
    ) -> Result<Self, LoadError> {
        let scope = Scope::new(TEXT_MODEL);
        let (width, pooler) = (config.hidden_size, scope.child("pooler.dense"));
        let has_pooler = !may_lack_pooler || loader.has(&pooler.name("weight"));
        let pooler = has_pooler.then(|| loader.linear(&pooler, width, width)).transpose()?;
        Ok(Self { encoder: TextTower::load(loader, config, TEXT_MODEL, memory)?, pooler })
    }

    fn pool(&self, ops: &O, class: &O::Act) -> Result<O::Act, BackendError> {
        let pooler = self.pooler.as_ref().ok_or_else(|| without("a text pooler"))?;
        ops.linear(class, pooler, Epilogue::Activation(Activation::Tanh))
    }
}

impl<O: Ops> Base<O> {
    fn project(&self, ops: &O, class: &O::Act) -> Result<O::Act, BackendError> {
        ops.linear(&self.text.pool(ops, class)?, &self.text_projection, Epilogue::None)
    }
}

/// Encodes whole texts through the first `depth` layers of the tower. Returns the hidden states of all tokens, and the
/// `[CLS]` states `[texts, width]`.
pub(super) fn encode_texts<O: Ops>(
    ops: &O,
    tower: &TextTower<O>,
    texts: &[&[u32]],
    memory: &CrossAttention<'_, O>,
    depth: usize,
    explained: &mut [Explained<'_, O>],
) -> Result<EncodedTexts<O>, BackendError> {
    let sequences: Vec<NewTokens<'_>> =
        texts.iter().map(|tokens| NewTokens { tokens, position: 0 }).collect();
    let attention = SelfAttention::Bidirectional;
    let hidden = tower.forward_to(ops, &sequences, &attention, memory, depth, explained)?.hidden;
    let mut start = 0;
    let firsts: Vec<usize> = texts
        .iter()
        .map(|text| {
            let first = start;
            start += text.len();
            first
        })
        .collect();
    let class = ops.select_rows(&hidden, &firsts)?;
    Ok(EncodedTexts { hidden, class })
}

/// Result of [`encode_texts`]: the hidden states of all tokens, and the `[CLS]` states.
pub(super) struct EncodedTexts<O: Ops> {
    pub(super) hidden: O::Act,
    pub(super) class: O::Act,
}

/// Returns the mean of the rows, computed in f64.
pub(super) fn mean(rows: &[Vec<f32>]) -> Embedding {
    let width = rows.first().map_or(0, Vec::len);
    let mut sums = vec![0f64; width];
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    Embedding::new(sums.into_iter().map(|sum| (sum / rows.len() as f64) as f32).collect())
}

/// Returns all rows one after the other.
pub(super) fn all(rows: Vec<Vec<f32>>) -> Embedding {
    Embedding::new(rows.into_iter().flatten().collect())
}

fn embeddings(rows: Vec<Vec<f32>>) -> Vec<Embedding> {
    rows.into_iter().map(Embedding::new).collect()
}

fn first_embedding(rows: Vec<Vec<f32>>) -> Embedding {
    Embedding::new(rows.into_iter().next().unwrap_or_default())
}

/// Returns the error for an output that this model class does not have. If a batch asks for such an output, the fault
/// lies with the server, not with the client.
fn without(what: &str) -> BackendError {
    BackendError::Device(format!("this model class has no {what}"))
}
