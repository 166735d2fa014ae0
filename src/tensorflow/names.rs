//! Translates the names of Keras weights to the names in PyTorch's state dict, and the axes of the weights to theirs.
//!
//! Source: transformers 4.46 `modeling_tf_pytorch_utils.py`, `convert_tf_weight_name_to_pt_weight_name` and
//! `apply_transpose`. Keras puts the weights of each layer of a model into a group of that layer's name, so a path is
//! `LAYER/MODEL/.../NAME:0`, where MODEL is the class in snake case.

/// Name and axes of a weight in PyTorch's state dict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StateDictEntry {
    pub(super) name: String,
    /// For each axis in PyTorch the axis in the file; `None` if they are the same.
    pub(super) axes: Option<Vec<usize>>,
}

impl StateDictEntry {
    /// Translates a path in the file. `rank` is the number of dimensions in the file.
    pub(super) fn of(path: &str, rank: usize) -> Self {
        let path = path.strip_suffix(":0").unwrap_or(path);
        // Keras needs a class for a list of layers, so layer i is called `layers_._i`.
        let path = path.replace("_._", "/");
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        // The layer and the model.
        parts.drain(..parts.len().saturating_sub(1).min(2));
        // The class `BlipModel` has no such level in PyTorch.
        if parts.len() > 1 && parts[0] == "blip" {
            parts.remove(0);
        }
        let last = parts.last().copied().unwrap_or_default();
        let axes = (last == "kernel").then(|| axes(rank)).flatten();
        let renamed = match last {
            "kernel" | "embeddings" | "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        if let Some(last) = parts.last_mut() {
            *last = renamed;
        }
        Self { name: parts.join("."), axes }
    }
}

/// Returns the axes of a kernel with this number of dimensions. In Keras, the axis of the input comes before that of the
/// output.
fn axes(rank: usize) -> Option<Vec<usize>> {
    match rank {
        // Linear layer: input, output.
        2 => Some(vec![1, 0]),
        // Convolution over images: height, width, input, output.
        4 => Some(vec![3, 2, 0, 1]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keras_names_become_those_of_the_state_dict() {
        let linear = Some(vec![1, 0]);
        for (path, rank, name, axes) in [
            (
                "text_encoder/tf_blip_for_question_answering/text_encoder/encoder/layer_._11/attention/self/key/kernel:0",
                2,
                "text_encoder.encoder.layer.11.attention.self.key.weight",
                linear.clone(),
            ),
            (
                "vision_model/tf_blip_model/vision_model/embeddings/patch_embedding/kernel:0",
                4,
                "vision_model.embeddings.patch_embedding.weight",
                Some(vec![3, 2, 0, 1]),
            ),
            (
                "vision_model/m/vision_model/embeddings/class_embedding:0",
                3,
                "vision_model.embeddings.class_embedding",
                None,
            ),
            (
                "text_decoder/m/text_decoder/bert/embeddings/word_embeddings/embeddings:0",
                2,
                "text_decoder.bert.embeddings.word_embeddings.weight",
                None,
            ),
            (
                "text_decoder/m/text_decoder/cls/predictions/transform/LayerNorm/gamma:0",
                1,
                "text_decoder.cls.predictions.transform.LayerNorm.weight",
                None,
            ),
            (
                "blip/tf_blip_model/blip/text_projection/kernel:0",
                2,
                "text_projection.weight",
                linear,
            ),
            ("blip/tf_blip_model/blip/logit_scale:0", 0, "logit_scale", None),
            (
                "encoder/m/encoder/layers_._0/layer_norm1/beta:0",
                1,
                "encoder.layers.0.layer_norm1.bias",
                None,
            ),
            ("kernel:0", 1, "weight", None),
            ("", 1, "", None),
        ] {
            let expected = StateDictEntry { name: name.to_owned(), axes };
            assert_eq!(StateDictEntry::of(path, rank), expected, "{path}");
        }
    }
}
