//! The parameters of `POST /hf/image-to-text`, translated into generation parameters.
//!
//! Numbers out of range are clamped, as on the routes of the other APIs, and parameters that have no effect are ignored,
//! as in transformers.

use serde::Deserialize;
use utoipa::ToSchema;

use super::super::lenient;
use super::super::sampling::Sampling;
use crate::http::error::{ApiError, Code};
use crate::http::extract::choices::EarlyStoppingField;
use crate::http::extract::fields::{Int, LengthPenalty, RepetitionPenalty};
use crate::http::extract::generation::{DEFAULT_MAX_NEW_TOKENS, GenerationFields};
use crate::http::settings::Limits;
use crate::http::state::models::Model;

/// Parameters of the generation. Numbers out of range are clamped.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct HfCaptionParameters {
    /// Maximum number of new tokens; clamped to the limit of the server.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    max_new_tokens: Option<i64>,
    /// Further parameters, as in transformers.
    #[serde(default, alias = "generate_kwargs", deserialize_with = "lenient::object_or_null")]
    generation_parameters: Option<HfGeneration>,
}

/// Parameters of `generate` in transformers. Others are ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct HfGeneration {
    /// Maximum number of new tokens; clamped to the limit of the server.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    max_new_tokens: Option<i64>,
    /// Minimum number of new tokens; clamped to their maximum.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    min_new_tokens: Option<i64>,
    /// Number of beams; clamped to 1 to 8.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    num_beams: Option<i64>,
    /// Samples tokens; by default if `temperature` is above 0 and there are no beams.
    #[serde(default)]
    do_sample: Option<bool>,
    /// Above 0, tokens are sampled.
    #[serde(default)]
    temperature: Option<f64>,
    /// Only for sampling: keeps the k likeliest tokens.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    top_k: Option<i64>,
    /// Only for sampling: keeps the likeliest tokens that together reach this probability.
    #[serde(default)]
    top_p: Option<f64>,
    /// Above 1, tokens that are already in the text are less probable; clamped to at most 100.
    #[serde(default)]
    #[schema(exclusive_minimum = 0)]
    repetition_penalty: Option<f64>,
    /// No sequence of this many tokens occurs twice; clamped to 0 (off) to 64.
    #[serde(default, deserialize_with = "lenient::integer_or_null")]
    no_repeat_ngram_size: Option<i64>,
    /// Only for beams: higher values favour longer texts; clamped to -3 to 10.
    #[serde(default)]
    length_penalty: Option<f64>,
    /// Only for beams: when the search stops.
    #[serde(default)]
    #[schema(value_type = EarlyStoppingField)]
    early_stopping: Option<EarlyStoppingField>,
}

impl HfCaptionParameters {
    /// Returns the generation parameters for this model.
    ///
    /// # Errors
    /// `invalid_request` if a number has no meaning.
    pub(super) fn generation(
        self,
        limits: &Limits,
        model: &Model,
    ) -> Result<GenerationFields, ApiError> {
        let given = self.generation_parameters.unwrap_or_default();
        let num_beams = given.num_beams.map(clamped);
        let has_beams = num_beams.is_some_and(|beams| beams.0 > 1);
        let samples = given.samples(has_beams);
        let sampling = Sampling {
            max_tokens: self.max_new_tokens.or(given.max_new_tokens),
            temperature: samples.then(|| given.temperature.unwrap_or(1.0)),
            top_p: given.top_p,
            top_k: given.top_k,
            ..Sampling::default()
        };
        let fields = sampling.fields(limits, model)?;
        let default = DEFAULT_MAX_NEW_TOKENS.min(limits.max_new_tokens) as u64;
        let most = fields.max_new_tokens.map_or(default, |max| max.0);
        let most = most.min(model.info.text_towers().max_tokens as u64);
        let beams_only = has_beams && !samples;
        Ok(GenerationFields {
            min_new_tokens: given
                .min_new_tokens
                .map(|min| Int(clamped::<0, 65_536>(min).0.min(most))),
            num_beams,
            repetition_penalty: given.repetition_penalty.map(repetition_penalty).transpose()?,
            no_repeat_ngram_size: given.no_repeat_ngram_size.map(clamped),
            length_penalty: given
                .length_penalty
                .filter(|_| beams_only)
                .map(|penalty| LengthPenalty(penalty.clamp(-3.0, 10.0) as f32)),
            early_stopping: given.early_stopping.filter(|_| beams_only),
            ..fields
        })
    }
}

impl HfGeneration {
    /// True if tokens are sampled. A temperature above 0 is enough, except beside beams, where transformers ignores it
    /// too. A temperature of 0 means the most probable tokens.
    fn samples(&self, has_beams: bool) -> bool {
        let is_above_zero = self.temperature.map(|temperature| temperature > 0.0);
        match self.do_sample {
            Some(wish) => wish && is_above_zero != Some(false),
            None => is_above_zero == Some(true) && !has_beams,
        }
    }
}

/// Returns the nearest number that the field accepts.
fn clamped<const MIN: u64, const MAX: u64>(value: i64) -> Int<MIN, MAX> {
    Int(u64::try_from(value).unwrap_or_default().clamp(MIN, MAX))
}

fn repetition_penalty(penalty: f64) -> Result<RepetitionPenalty, ApiError> {
    if penalty > 0.0 {
        let penalty = penalty.clamp(f64::from(f32::MIN_POSITIVE), 100.0);
        return Ok(RepetitionPenalty(penalty as f32));
    }
    let field = "parameters.generation_parameters.repetition_penalty";
    Err(ApiError::field(Code::InvalidRequest, field, "must be above 0"))
}
