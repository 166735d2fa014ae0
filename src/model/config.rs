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
use super::ops::Activation;
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
    /// Activation, by its name in transformers.
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
    /// Activation, by its name in transformers.
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

/// Names of transformers' `ACT2FN` and what they compute. `gelu_new`, `gelu_accurate` and `gelu_fast` write the same formula as
/// `gelu_pytorch_tanh` in other ways.
const ACTIVATIONS: [(&str, Activation); 12] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// The names of [`ACTIVATIONS`], for messages.
const ACCEPTED_ACTIVATIONS: &str = "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_python_tanh, \
                                    gelu_accurate, gelu_fast, quick_gelu, relu, silu, swish or tanh";

const CHECKED: &str = "BlipConfig::read accepts known activations only";

fn activation(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
}

impl TextConfig {
    /// The activation of feed-forward layers and of the LM head's transform.
    ///
    /// # Panics
    /// Where `hidden_act` is unknown, which [`BlipConfig::read`] refuses.
    #[must_use]
    pub fn activation(&self) -> Activation {
        activation(&self.hidden_act).expect(CHECKED)
    }
}

impl VisionConfig {
    /// The activation between the two feed-forward layers.
    ///
    /// # Panics
    /// Where `hidden_act` is unknown, which [`BlipConfig::read`] refuses.
    #[must_use]
    pub fn activation(&self) -> Activation {
        activation(&self.hidden_act).expect(CHECKED)
    }

    /// Tokens of one image: whole patches and the class token.
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
        for (field, name) in [
            ("text_config.hidden_act", &text.hidden_act),
            ("vision_config.hidden_act", &vision.hidden_act),
        ] {
            if activation(name).is_none() {
                return refuse(field, format!("{name:?}"), ACCEPTED_ACTIVATIONS);
            }
        }
        if !divides(text.num_attention_heads, text.hidden_size) {
            let value = text.num_attention_heads.to_string();
            return refuse("text_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        if !divides(vision.num_attention_heads, vision.hidden_size) {
            let value = vision.num_attention_heads.to_string();
            return refuse("vision_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        // The convolution leaves out the pixels beyond the last whole patch.
        if vision.patch_size == 0 || vision.patch_size > vision.image_size {
            let value = vision.patch_size.to_string();
            return refuse("vision_config.patch_size", value, "1 to image_size");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Result<BlipConfig, String> {
        let file = File::InBinary { path: "config.json", bytes: text.as_bytes() };
        BlipConfig::read(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn the_two_forms_of_gelu_and_the_two_towers_are_told_apart() {
        let config = read(
            r#"{"text_config": {"hidden_act": "gelu_new"}, "vision_config": {"hidden_act": "swish"}}"#,
        )
        .unwrap();
        assert_eq!(config.text_config.activation(), Activation::GeluTanh);
        assert_eq!(config.vision_config.activation(), Activation::Silu);
        assert_eq!(read("{}").unwrap().text_config.activation(), Activation::Gelu);
    }

    #[test]
    fn every_accepted_activation_is_in_the_message_and_others_are_refused_with_it() {
        for (name, _) in ACTIVATIONS {
            let mut words = ACCEPTED_ACTIVATIONS.split([',', ' ']);
            assert!(words.any(|word| word == name), "{name}");
        }
        let error = read(r#"{"text_config": {"hidden_act": "gelu_10"}}"#).unwrap_err();
        assert!(
            error.contains("text_config.hidden_act is \"gelu_10\"; accepted: gelu, "),
            "{error}"
        );
    }

    #[test]
    fn a_patch_need_not_divide_the_image_but_must_fit_in_it() {
        let config = read(r#"{"vision_config": {"image_size": 40, "patch_size": 16}}"#).unwrap();
        assert_eq!(config.vision_config.tokens(), 5);
        for patch in ["0", "41"] {
            let text =
                format!(r#"{{"vision_config": {{"image_size": 40, "patch_size": {patch}}}}}"#);
            let error = read(text.leak()).unwrap_err();
            let expected =
                format!("vision_config.patch_size is {patch}; accepted: 1 to image_size");
            assert!(error.contains(&expected), "{error}");
        }
    }
}
