//! What an input of `/embeddings` embeds, and whether the model can.

use std::sync::Arc;

use super::{EmbeddingType, PoolingName};
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Int;
use crate::http::extract::image_field::ImageField;
use crate::task::{EmbedOutput, ModelInfo, Pooling};

/// What is embedded.
#[derive(Debug, Clone)]
pub(super) enum Subject {
    Image(ImageField),
    Text(Arc<str>),
    Multimodal(ImageField, Arc<str>),
}

/// Decides what to embed from the requested type and the given fields.
pub(super) fn subject(
    asked: Option<EmbeddingType>,
    image: Option<ImageField>,
    text: Option<Arc<str>>,
) -> Result<Subject, ApiError> {
    let refused =
        |field: &str, detail: &str| Err(ApiError::field(Code::InvalidRequest, field, detail));
    match (asked, image, text) {
        (None | Some(EmbeddingType::Image), Some(image), None) => Ok(Subject::Image(image)),
        (None | Some(EmbeddingType::Text), None, Some(text)) => Ok(Subject::Text(text)),
        (Some(EmbeddingType::Multimodal), Some(image), Some(text)) => {
            Ok(Subject::Multimodal(image, text))
        }
        (None, Some(_), Some(_)) => {
            refused("type", "image and text together need \"type\": \"multimodal\"")
        }
        (None, None, None) => refused("image", "image or text is needed"),
        (Some(EmbeddingType::Image | EmbeddingType::Multimodal), None, _) => {
            refused("image", "is needed for this type")
        }
        (Some(EmbeddingType::Text | EmbeddingType::Multimodal), _, None) => {
            refused("text", "is needed for this type")
        }
        (Some(EmbeddingType::Image), Some(_), Some(_)) => {
            refused("text", "is not allowed with \"type\": \"image\"")
        }
        (Some(EmbeddingType::Text), Some(_), Some(_)) => {
            refused("image", "is not allowed with \"type\": \"text\"")
        }
    }
}

/// Returns which states the request wants.
///
/// # Errors
/// `invalid_request` for a layer without effect.
pub(super) fn output(
    pooling: Option<PoolingName>,
    layer: Option<Int<0, 1024>>,
) -> Result<EmbedOutput, ApiError> {
    let pooling = pooling.map_or(Pooling::Projection, Pooling::from);
    if layer.is_some() && matches!(pooling, Pooling::Projection | Pooling::Pooler) {
        let detail = "has an effect only with \"pooling\": \"cls\", \"mean\" or \"none\"";
        return Err(ApiError::field(Code::InvalidRequest, "layer", detail));
    }
    Ok(EmbedOutput { pooling, layer: layer.map(|layer| layer.0 as u16) })
}

/// Checks that the model has the encoder, the head and the layer that the request needs.
///
/// # Errors
/// `score_not_available`, naming the field.
pub(super) fn check_available(
    subject: &Subject,
    output: EmbedOutput,
    model: &ModelInfo,
) -> Result<(), ApiError> {
    let refused =
        |field: &str, detail: String| Err(ApiError::field(Code::ScoreNotAvailable, field, detail));
    let (name, class) = (&model.name, model.class);
    let is_image = matches!(subject, Subject::Image(_));
    let has_text_pooler = model.text.as_ref().is_some_and(|text| text.has_pooler);
    if !matches!(subject, Subject::Text(_)) && model.vision.is_none() {
        return refused("image", format!("{name} has no vision tower; only texts are available"));
    }
    if !is_image && !class.has_text_encoder() {
        return refused("text", format!("{name} has no text encoder; only images are available"));
    }
    if output.pooling == Pooling::Projection && !class.has_projection() {
        let pooler = is_image || has_text_pooler;
        let accepted = if pooler { "cls, mean, pooler or none" } else { "cls, mean or none" };
        let detail = format!("{name} has no projection; give pooling: {accepted}");
        return refused("pooling", detail);
    }
    if output.pooling == Pooling::Pooler && !is_image && !has_text_pooler {
        let detail = format!("{name} does not pool texts; only cls, mean and none are available");
        return refused("pooling", detail);
    }
    let states = if is_image { model.vision_tower().states } else { model.text_towers().states };
    let layers = states.layers;
    match output.layer {
        Some(layer) if usize::from(layer) > layers => {
            refused("layer", format!("{name} has the layers 0 to {layers} here"))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_follows_from_what_is_given_and_asked() {
        let image = || Some(ImageField::Value(Arc::new("i".to_owned())));
        let text = || Some(Arc::from("t"));
        assert!(matches!(subject(None, image(), None), Ok(Subject::Image(_))));
        assert!(matches!(subject(None, None, text()), Ok(Subject::Text(_))));
        let both = subject(Some(EmbeddingType::Multimodal), image(), text());
        assert!(matches!(both, Ok(Subject::Multimodal(..))));
        let field = |result: Result<Subject, ApiError>| result.unwrap_err().errors[0].field.clone();
        assert_eq!(field(subject(None, image(), text())), "type");
        assert_eq!(field(subject(None, None, None)), "image");
        assert_eq!(field(subject(Some(EmbeddingType::Multimodal), image(), None)), "text");
        assert_eq!(field(subject(Some(EmbeddingType::Image), image(), text())), "text");
        assert_eq!(field(subject(Some(EmbeddingType::Text), image(), text())), "image");
    }
}
