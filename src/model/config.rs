//! `config.json` with transformers' class defaults for every field that is left out.
//! Source: transformers `BlipConfig`, `BlipTextConfig`, `BlipVisionConfig` (5.23).
//!
//! Files re-saved by transformers omit values that equal the class defaults, so the defaults here are
//! the classes', traps included (8 text heads, where every official file says 12). Legacy generation keys
//! (`max_length`, `num_beams`, ...) are ignored, as transformers 5 ignores them.

use std::path::Path;

use serde::Deserialize;

use super::error::LoadError;
use super::load::File;
use crate::task::ModelClass;

/// A whole checkpoint's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct BlipConfig {
    /// Class names; one of BLIP's four decides the role.
    pub architectures: Vec<String>,
    /// The text towers.
    pub text_config: TextConfig,
    /// The vision tower.
    pub vision_config: VisionConfig,
    /// Width of `BlipModel`'s projections.
    pub projection_dim: usize,
    /// Width of the retrieval class's projections.
    pub image_text_hidden_size: usize,
}

/// The text towers; encoder and decoder share one configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Rows of the embedding table and of the LM head.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width between the two feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Activation; only the exact GELU occurs.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// First token of captions and answers.
    pub bos_token_id: u32,
    /// Stop token (not `eos_token_id`, which BLIP never generates).
    pub sep_token_id: u32,
    /// True gives every text layer cross-attention weights, in the encoder too.
    pub is_decoder: bool,
}

/// The vision tower.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width between the two feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the input in pixels.
    #[serde(deserialize_with = "square")]
    pub image_size: usize,
    /// Side of a patch in pixels.
    #[serde(deserialize_with = "square")]
    pub patch_size: usize,
    /// Activation; only the exact GELU occurs.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
}

impl Default for BlipConfig {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            text_config: TextConfig::default(),
            vision_config: VisionConfig::default(),
            projection_dim: 512,
            image_text_hidden_size: 256,
        }
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            bos_token_id: 30522,
            sep_token_id: 102,
            is_decoder: true,
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 384,
            patch_size: 16,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl VisionConfig {
    /// Tokens of one image: patches and the class token.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side + 1
    }
}

impl BlipConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is not a BLIP configuration, or asks for something BLIP does not have.
    pub fn read(file: &File) -> Result<Self, LoadError> {
        let config: Self = super::json::read_json(file)?;
        config.check(file.path())?;
        Ok(config)
    }

    /// The class named in `architectures`.
    ///
    /// # Errors
    /// When none of BLIP's classes is named.
    pub fn class(&self, path: &Path) -> Result<ModelClass, LoadError> {
        let named = |class: &ModelClass| self.architectures.iter().any(|name| name == class.name());
        ModelClass::ALL.into_iter().find(named).ok_or_else(|| LoadError::Unsupported {
            path: path.to_owned(),
            field: "architectures",
            value: format!("{:?}", self.architectures),
            accepted: "BlipForConditionalGeneration, BlipForQuestionAnswering, \
                       BlipForImageTextRetrieval or BlipModel",
        })
    }

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let refuse = |field, value: String, accepted| {
            Err(LoadError::Unsupported { path: path.to_owned(), field, value, accepted })
        };
        if text.hidden_act != "gelu" {
            return refuse("text_config.hidden_act", text.hidden_act.clone(), "gelu");
        }
        if vision.hidden_act != "gelu" {
            return refuse("vision_config.hidden_act", vision.hidden_act.clone(), "gelu");
        }
        if !divides(text.num_attention_heads, text.hidden_size) {
            let value = text.num_attention_heads.to_string();
            return refuse("text_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        if !divides(vision.num_attention_heads, vision.hidden_size) {
            let value = vision.num_attention_heads.to_string();
            return refuse("vision_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        if !divides(vision.patch_size, vision.image_size) {
            let value = vision.patch_size.to_string();
            return refuse("vision_config.patch_size", value, "a divisor of image_size");
        }
        let vocabulary = text.vocab_size as u64;
        if u64::from(text.bos_token_id) >= vocabulary || u64::from(text.sep_token_id) >= vocabulary
        {
            let value = format!("{} and {}", text.bos_token_id, text.sep_token_id);
            return refuse(
                "text_config.bos_token_id and sep_token_id",
                value,
                "ids below vocab_size",
            );
        }
        Ok(())
    }
}

fn divides(divisor: usize, number: usize) -> bool {
    divisor > 0 && number > 0 && number.is_multiple_of(divisor)
}

/// A side in pixels, written as a number or as two equal numbers.
fn square<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Side {
        One(usize),
        Two([usize; 2]),
    }
    match Side::deserialize(deserializer)? {
        Side::One(side) => Ok(side),
        Side::Two([height, width]) if height == width => Ok(width),
        Side::Two([height, width]) => {
            Err(serde::de::Error::custom(format!("{height}x{width} is not square")))
        }
    }
}
