//! Reads `config.json`. A field that is missing gets the default that it has in transformers' configuration class.
//! Source: transformers `BlipConfig`, `BlipTextConfig`, `BlipVisionConfig` (5.23).
//!
//! When transformers saves a file, it omits values that equal the class defaults. So the defaults here must equal the
//! class defaults, even the surprising ones: 8 text heads, although every official file says 12. Legacy generation keys
//! (`max_length`, `num_beams`, ...) are ignored, as in transformers 5.

use std::path::Path;

use serde_json::Value;

use super::error::LoadError;
use super::load::file::File;
use super::ops::Activation;
use crate::document::{self, DocumentError, ObjectFields};
use crate::task::ModelClass;

/// The model configuration of a checkpoint, read from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlipConfig {
    /// Class names. The BLIP class among them decides which tasks the model serves.
    pub architectures: Vec<String>,
    /// Configuration of the text towers.
    pub text_config: TextConfig,
    /// Configuration of the vision tower.
    pub vision_config: VisionConfig,
    /// Width of the embeddings of `BlipModel`, that is, of the output of its projections.
    pub projection_dim: usize,
    /// Width of the embeddings of `BlipForImageTextRetrieval`, that is, of the output of its projections.
    pub image_text_hidden_size: usize,
}

/// Configuration of the text towers. The encoder and the decoder of a model share it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Number of rows of the embedding table and of the LM head.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Width between the two layers of a feed-forward block.
    pub intermediate_size: usize,
    /// Number of transformer layers of the tower.
    pub num_hidden_layers: usize,
    /// Number of attention heads per layer. `hidden_size` is a multiple of it.
    pub num_attention_heads: usize,
    /// Maximum length of a sequence in tokens.
    pub max_position_embeddings: usize,
    /// Name of the activation function, as the `transformers` library spells it.
    pub hidden_act: String,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// First token of captions and answers.
    pub bos_token_id: u32,
    /// Token that ends a sequence. This is not `eos_token_id`, which BLIP never generates.
    pub sep_token_id: u32,
    /// If true, every text layer has cross-attention weights, in the encoder too.
    pub is_decoder: bool,
}

/// Configuration of the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Width between the two layers of a feed-forward block.
    pub intermediate_size: usize,
    /// Number of transformer layers of the tower.
    pub num_hidden_layers: usize,
    /// Number of attention heads per layer. `hidden_size` is a multiple of it.
    pub num_attention_heads: usize,
    /// Side of the square input image, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Name of the activation function, as the `transformers` library spells it.
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

/// Names of activation functions in transformers' `ACT2FN`, and the function that each name stands for. `gelu_new`,
/// `gelu_accurate` and `gelu_fast` are other names for the formula of `gelu_pytorch_tanh`.
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

/// The names in [`ACTIVATIONS`], for error messages.
const ACCEPTED_ACTIVATIONS: &str = "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_python_tanh, \
                                    gelu_accurate, gelu_fast, quick_gelu, relu, silu, swish or tanh";

/// Maximum count or width that a file may specify. It is also the maximum dimension of a tensor.
const LARGEST: u64 = i32::MAX as u64;

const COUNT: &str = "a whole number from 1 to 2147483647";

const CHECKED: &str = "BlipConfig::read accepts known activations only";

fn activation(name: &str) -> Option<Activation> {
    ACTIVATIONS.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
}

impl TextConfig {
    /// Returns the activation function of the feed-forward blocks and of the LM head's transform layer.
    ///
    /// # Panics
    /// If `hidden_act` is unknown. [`BlipConfig::read`] rejects a file with an unknown name.
    #[must_use]
    pub fn activation(&self) -> Activation {
        activation(&self.hidden_act).expect(CHECKED)
    }
}

impl VisionConfig {
    /// Returns the activation function of the feed-forward blocks.
    ///
    /// # Panics
    /// If `hidden_act` is unknown. [`BlipConfig::read`] rejects a file with an unknown name.
    #[must_use]
    pub fn activation(&self) -> Activation {
        activation(&self.hidden_act).expect(CHECKED)
    }

    /// Returns the number of tokens per image: one for each whole patch, plus the class token.
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
    /// When the file cannot be read, is not a BLIP configuration, or asks for a feature that is not supported.
    pub fn read(file: &File) -> Result<Self, LoadError> {
        let object = document::parse_object(file.path(), &file.read()?)?;
        let fields = ObjectFields::new(file.path(), &object);
        let class = Self::default();
        let architectures = architectures(&fields)?;
        // The file of a single tower is the configuration of this tower, without a block.
        let is = |tower: ModelClass| architectures.iter().any(|name| name == tower.name());
        let block = |tower, name| {
            if is(tower) { Ok(Some(fields)) } else { fields.block(name) }
        };
        let config = Self {
            text_config: TextConfig::of(block(ModelClass::Text, "text_config")?)?,
            vision_config: VisionConfig::of(block(ModelClass::Vision, "vision_config")?)?,
            architectures,
            projection_dim: count(&fields, "projection_dim", class.projection_dim)?,
            image_text_hidden_size: count(
                &fields,
                "image_text_hidden_size",
                class.image_text_hidden_size,
            )?,
        };
        config.check(file.path())?;
        Ok(config)
    }

    /// Returns the BLIP class that `architectures` names. `path` is the file to name in an error.
    ///
    /// # Errors
    /// When `architectures` names none of BLIP's classes.
    pub fn class(&self, path: &Path) -> Result<ModelClass, LoadError> {
        let named = |class: &ModelClass| self.architectures.iter().any(|name| name == class.name());
        let refuse = || {
            let accepted = "BlipForConditionalGeneration, BlipForQuestionAnswering, \
                            BlipForImageTextRetrieval, BlipModel, BlipVisionModel or BlipTextModel";
            let value = Value::from(self.architectures.clone());
            let field = "architectures".to_owned();
            if self.architectures.is_empty() {
                let (path, accepted) = (path.to_owned(), accepted.to_owned());
                return DocumentError::Missing { path, field, accepted }.into();
            }
            DocumentError::field(path.to_owned(), field, Some(&value), accepted).into()
        };
        ModelClass::ALL.into_iter().find(named).ok_or_else(refuse)
    }

    fn check(&self, path: &Path) -> Result<(), LoadError> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let single = self.class(path).is_ok_and(ModelClass::is_single_tower);
        let refuse = |field: &str, value: Value, accepted| {
            let field = match field.split_once('.') {
                Some((_, of_tower)) if single => of_tower.to_owned(),
                Some(_) | None => field.to_owned(),
            };
            Err(DocumentError::field(path.to_owned(), field, Some(&value), accepted).into())
        };
        for (field, name) in [
            ("text_config.hidden_act", &text.hidden_act),
            ("vision_config.hidden_act", &vision.hidden_act),
        ] {
            if activation(name).is_none() {
                return refuse(field, name.as_str().into(), ACCEPTED_ACTIVATIONS);
            }
        }
        if !text.hidden_size.is_multiple_of(text.num_attention_heads) {
            let value = text.num_attention_heads.into();
            return refuse("text_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        if !vision.hidden_size.is_multiple_of(vision.num_attention_heads) {
            let value = vision.num_attention_heads.into();
            return refuse("vision_config.num_attention_heads", value, "a divisor of hidden_size");
        }
        // The patch size need not divide the image size: the convolution ignores pixels beyond the last whole patch.
        if vision.patch_size > vision.image_size {
            let value = vision.patch_size.into();
            return refuse("vision_config.patch_size", value, "1 to image_size");
        }
        let vocabulary = text.vocab_size as u64;
        for (field, id) in [
            ("text_config.bos_token_id", text.bos_token_id),
            ("text_config.sep_token_id", text.sep_token_id),
        ] {
            if u64::from(id) >= vocabulary {
                return refuse(field, id.into(), "an id below vocab_size");
            }
        }
        Ok(())
    }
}

impl TextConfig {
    /// Reads the fields of `block`. If `block` is `None`, the file has no such block, and the defaults of transformers'
    /// class are returned.
    fn of(block: Option<ObjectFields<'_>>) -> Result<Self, DocumentError> {
        let class = Self::default();
        let Some(fields) = block else { return Ok(class) };
        Ok(Self {
            vocab_size: count(&fields, "vocab_size", class.vocab_size)?,
            hidden_size: count(&fields, "hidden_size", class.hidden_size)?,
            intermediate_size: count(&fields, "intermediate_size", class.intermediate_size)?,
            num_hidden_layers: count(&fields, "num_hidden_layers", class.num_hidden_layers)?,
            num_attention_heads: count(&fields, "num_attention_heads", class.num_attention_heads)?,
            max_position_embeddings: count(
                &fields,
                "max_position_embeddings",
                class.max_position_embeddings,
            )?,
            hidden_act: given(&fields, "hidden_act", ACCEPTED_ACTIVATIONS, class.hidden_act, name)?,
            layer_norm_eps: epsilon(&fields, class.layer_norm_eps)?,
            bos_token_id: token(&fields, "bos_token_id", class.bos_token_id)?,
            sep_token_id: token(&fields, "sep_token_id", class.sep_token_id)?,
            is_decoder: given(
                &fields,
                "is_decoder",
                "true or false",
                class.is_decoder,
                Value::as_bool,
            )?,
        })
    }
}

impl VisionConfig {
    /// Reads the fields of `block`. If `block` is `None`, the file has no such block, and the defaults of transformers'
    /// class are returned.
    fn of(block: Option<ObjectFields<'_>>) -> Result<Self, DocumentError> {
        let class = Self::default();
        let Some(fields) = block else { return Ok(class) };
        Ok(Self {
            hidden_size: count(&fields, "hidden_size", class.hidden_size)?,
            intermediate_size: count(&fields, "intermediate_size", class.intermediate_size)?,
            num_hidden_layers: count(&fields, "num_hidden_layers", class.num_hidden_layers)?,
            num_attention_heads: count(&fields, "num_attention_heads", class.num_attention_heads)?,
            image_size: side(&fields, "image_size", class.image_size)?,
            patch_size: side(&fields, "patch_size", class.patch_size)?,
            hidden_act: given(&fields, "hidden_act", ACCEPTED_ACTIVATIONS, class.hidden_act, name)?,
            layer_norm_eps: epsilon(&fields, class.layer_norm_eps)?,
        })
    }
}

/// Returns the value of the field, parsed by `read`, or `default` if the file does not have the field. `null` is an
/// error, as in transformers.
fn given<'a, T>(
    fields: &ObjectFields<'a>,
    field: &'static str,
    accepted: &str,
    default: T,
    read: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, DocumentError> {
    match fields.raw(field) {
        None => Ok(default),
        Some(value) => read(value).ok_or_else(|| fields.refuse(field, accepted)),
    }
}

/// Returns a width or a count, which may be from 1 to `LARGEST`.
fn count(
    fields: &ObjectFields<'_>,
    field: &'static str,
    default: usize,
) -> Result<usize, DocumentError> {
    given(fields, field, COUNT, default, positive)
}

/// Returns a side in pixels. The file may specify one number or two equal numbers.
fn side(
    fields: &ObjectFields<'_>,
    field: &'static str,
    default: usize,
) -> Result<usize, DocumentError> {
    given(fields, field, "a whole number from 1, or two equal ones", default, |value| {
        match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => positive(height).filter(|_| height == width),
            Some(_) => None,
            None => positive(value),
        }
    })
}

fn token(
    fields: &ObjectFields<'_>,
    field: &'static str,
    default: u32,
) -> Result<u32, DocumentError> {
    let id = |value| whole(value).and_then(|id| u32::try_from(id).ok());
    given(fields, field, "an id below vocab_size", default, id)
}

fn epsilon(fields: &ObjectFields<'_>, default: f64) -> Result<f64, DocumentError> {
    let number = |value: &Value| value.as_f64().filter(|number| (0.0..1.0).contains(number));
    given(fields, "layer_norm_eps", "a number from 0 to below 1", default, number)
}

fn positive(value: &Value) -> Option<usize> {
    whole(value).filter(|&number| number > 0)
}

fn whole(value: &Value) -> Option<usize> {
    let number = value.as_u64().filter(|&number| number <= LARGEST)?;
    usize::try_from(number).ok()
}

fn name(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Returns the class names. The file may have a list of names, a single name, or no such field.
fn architectures(fields: &ObjectFields<'_>) -> Result<Vec<String>, DocumentError> {
    let names = fields.optional("architectures", "a list of class names", |value| {
        if let Some(name) = name(value) {
            return Some(vec![name]);
        }
        value.as_array()?.iter().map(name).collect()
    })?;
    Ok(names.unwrap_or_default())
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
        for (text, patch, accepted) in [
            (
                r#"{"vision_config": {"image_size": 40, "patch_size": 0}}"#,
                "0",
                "a whole number from 1, or two equal ones",
            ),
            (r#"{"vision_config": {"image_size": 40, "patch_size": 41}}"#, "41", "1 to image_size"),
        ] {
            let error = read(text).unwrap_err();
            let expected = format!("vision_config.patch_size is {patch}; accepted: {accepted}");
            assert!(error.contains(&expected), "{error}");
        }
    }
}
