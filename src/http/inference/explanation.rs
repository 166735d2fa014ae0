//! Explanations: where in the image the model looked for each token (`explain` of `/caption` and `/vqa`).

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::sequences::wrong_count;
use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::Int;
use crate::http::state::models::Model;
use crate::task::{Explain, GenerationParams, PatchWeights, TokenLogprob};

/// Where in the image the model looked. These are the cross-attention weights of the text model, averaged over heads and
/// layers. They show what the model used, not why it decided.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Explanation {
    /// Rows and columns of the grid of image patches.
    #[schema(min_items = 2, max_items = 2, example = json!([24, 24]))]
    grid: [usize; 2],
    /// The layers that were averaged.
    #[schema(example = json!([0, 1, 2]))]
    layers: Vec<u16>,
    /// One entry for each token.
    tokens: Vec<ExplainedToken>,
}

/// Where in the image the model looked for one token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExplainedToken {
    /// Token id in the model's vocabulary.
    #[schema(example = 8870)]
    id: u32,
    /// The token as the vocabulary spells it.
    #[schema(example = "cats")]
    text: String,
    /// Natural log-probability of a generated token; absent for the tokens of a question.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = f32, required = false, example = -0.12, maximum = 0)]
    logprob: Option<f32>,
    /// Weight of each patch, row by row from the top left. They sum to less than 1; the remainder is the
    /// weight of the class token.
    #[schema(example = json!([0.001, 0.002]))]
    weights: PatchWeights,
}

/// Returns what a request wants to be explained.
///
/// # Errors
/// `invalid_request` for layers without `explain`, and `score_not_available` for a layer that the model does not have.
pub(crate) fn wanted(
    explain: Option<bool>,
    layers: Option<Vec<Int<0, 1024>>>,
    model: &Model,
) -> Result<Option<Explain>, ApiError> {
    let all = model.info.text_towers().states.layers;
    let layers: Vec<u16> = match (explain.unwrap_or(false), layers) {
        (false, None) => return Ok(None),
        (false, Some(_)) => {
            let detail = "has no effect without explain; set explain or leave it out";
            return Err(ApiError::field(Code::InvalidRequest, "explain_layers", detail));
        }
        (true, None) => (0..all as u16).collect(),
        (true, Some(layers)) => layers.iter().map(|layer| layer.0 as u16).collect(),
    };
    for (index, layer) in layers.iter().enumerate() {
        let field = || format!("explain_layers[{index}]");
        if layers[..index].contains(layer) {
            let detail = "layers must be distinct; this one is a duplicate";
            return Err(ApiError::field(Code::InvalidRequest, field(), detail));
        }
        if usize::from(*layer) >= all {
            let last = all.saturating_sub(1);
            let detail = format!("{} has the layers 0 to {last}", model.info.name);
            return Err(ApiError::field(Code::ScoreNotAvailable, field(), detail));
        }
    }
    Ok(Some(Explain(Arc::from(layers))))
}

/// Checks that at most one sequence without beam search is explained.
///
/// # Errors
/// `invalid_request`, naming `explain`.
pub(crate) fn check_rows(
    explain: Option<&Explain>,
    params: &GenerationParams,
) -> Result<(), ApiError> {
    if explain.is_none() || params.rows() == 1 {
        return Ok(());
    }
    let detail = "only one sequence without beam search can be explained; leave out num_beams and num_return_sequences";
    Err(ApiError::field(Code::InvalidRequest, "explain", detail))
}

impl Explanation {
    /// Explains the tokens of a generated text.
    ///
    /// # Errors
    /// `internal_error` if the engine returned no weights or too few.
    pub(crate) fn of_generated(
        explain: &Explain,
        model: &Model,
        tokens: &[TokenLogprob],
        attention: Option<Vec<PatchWeights>>,
    ) -> Result<Self, ApiError> {
        let tokens = tokens.iter().map(|token| (token.id, Some(token.logprob)));
        Self::new(explain, model, tokens.collect(), attention)
    }

    /// Explains the tokens of a question.
    ///
    /// # Errors
    /// `internal_error` if the engine returned no weights or too few.
    pub(crate) fn of_question(
        explain: &Explain,
        model: &Model,
        ids: &[u32],
        attention: Option<Vec<PatchWeights>>,
    ) -> Result<Self, ApiError> {
        Self::new(explain, model, ids.iter().map(|&id| (id, None)).collect(), attention)
    }

    fn new(
        Explain(layers): &Explain,
        model: &Model,
        tokens: Vec<(u32, Option<f32>)>,
        attention: Option<Vec<PatchWeights>>,
    ) -> Result<Self, ApiError> {
        let attention = attention.filter(|weights| weights.len() == tokens.len());
        let attention = attention.ok_or_else(wrong_count)?;
        let side = (model.info.vision_tower().tokens - 1).isqrt();
        let tokens = tokens.into_iter().zip(attention).map(|((id, logprob), weights)| {
            let text = model.tokenizer().token(id).unwrap_or_default();
            ExplainedToken { id, text, logprob, weights }
        });
        Ok(Self { grid: [side, side], layers: layers.to_vec(), tokens: tokens.collect() })
    }
}
