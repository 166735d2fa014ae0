//! The sampling options of the OpenAI and Ollama APIs, translated into generation parameters.
//!
//! Those APIs clamp or ignore what a model cannot do, so only values without a meaning are rejected.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

use crate::http::error::{ApiError, Code};
use crate::http::extract::fields::{Int, Temperature, Text, TopP};
use crate::http::extract::generation::GenerationFields;
use crate::http::extract::generation_lists::Words;
use crate::http::settings::Limits;
use crate::http::state::models::Model;

/// Maximum number of stop strings of a request.
const MAX_STOPS: usize = 16;
/// Maximum number of texts of a request.
const MAX_TEXTS: usize = 8;
/// Number of bits of a seed.
const SEED_MASK: u64 = (1 << 53) - 1;

/// The sampling options of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Sampling {
    /// Maximum number of new tokens. Zero and negative numbers mean "no limit of the client's own", as in Ollama.
    pub(super) max_tokens: Option<i64>,
    /// Above 0, tokens are sampled; 0 and `None` choose the most probable token (greedy search).
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) stop: StopField,
    /// Number of texts.
    pub(super) n: Option<i64>,
}

impl Sampling {
    /// Returns the generation parameters for this model. The limit on new tokens is clamped to what server and model
    /// allow.
    ///
    /// # Errors
    /// `invalid_request` if `n` is out of range.
    pub(super) fn fields(
        &self,
        limits: &Limits,
        model: &Model,
    ) -> Result<GenerationFields, ApiError> {
        let texts = self.texts()?;
        let most = limits.max_new_tokens.min(model.info.text_towers().max_tokens) as u64;
        let max_new_tokens =
            self.max_tokens.map(|max| u64::try_from(max).unwrap_or_default()).map(|max| {
                // Neither number exceeds the range of the field, since `most` is a valid setting.
                Int(if max == 0 { most } else { max.min(most) })
            });
        let stops = &self.stop.0;
        let stop_strings = (!stops.is_empty())
            .then(|| Words(stops.iter().map(|stop| Arc::clone(&stop.0)).collect()));
        let mut fields =
            GenerationFields { max_new_tokens, stop_strings, ..GenerationFields::default() };
        if self.samples() {
            let clamped =
                |value: f64, max: f64| value.clamp(f64::from(f32::MIN_POSITIVE), max) as f32;
            fields.do_sample = Some(true);
            fields.temperature = self.temperature.map(|value| Temperature(clamped(value, 100.0)));
            fields.top_p = self.top_p.map(|value| TopP(clamped(value, 1.0)));
            // Ollama: 0 and below keep all tokens.
            let keep = |top_k: i64| Int(u64::try_from(top_k).unwrap_or_default().min(100_000));
            fields.top_k = self.top_k.map(keep);
            fields.seed = self.seed.map(|seed| Int(seed.cast_unsigned() & SEED_MASK));
            fields.num_return_sequences = Some(Int(texts as u64));
        }
        Ok(fields)
    }

    /// True if tokens are sampled.
    pub(super) fn samples(&self) -> bool {
        self.temperature.is_some_and(|temperature| temperature > 0.0)
    }

    /// Returns the number of texts of the answer.
    ///
    /// # Errors
    /// `invalid_request` if it is out of range.
    pub(super) fn texts(&self) -> Result<usize, ApiError> {
        let n = usize::try_from(self.n.unwrap_or(1)).unwrap_or_default();
        if (1..=MAX_TEXTS).contains(&n) {
            return Ok(n);
        }
        let detail = format!("must be an integer from 1 to {MAX_TEXTS}");
        Err(ApiError::field(Code::InvalidRequest, "n", detail))
    }
}

/// The field `stop`: one string or a list. Empty strings are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StopField(pub(super) Vec<Text>);

impl StopField {
    fn push<E: Error>(&mut self, text: &str) -> Result<(), E> {
        if text.is_empty() {
            return Ok(());
        }
        if self.0.len() >= MAX_STOPS {
            return Err(E::custom(format_args!("at most {MAX_STOPS} strings are allowed")));
        }
        self.0.push(Text::try_new(text).map_err(E::custom)?);
        Ok(())
    }
}

struct StopVisitor;

impl<'de> Visitor<'de> for StopVisitor {
    type Value = StopField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_unit<E: Error>(self) -> Result<StopField, E> {
        Ok(StopField::default())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<StopField, E> {
        let mut stops = StopField::default();
        stops.push(text)?;
        Ok(stops)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<StopField, A::Error> {
        let mut stops = StopField::default();
        while let Some(text) = items.next_element::<String>()? {
            if let Err(error) = stops.push(&text) {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                return Err(error);
            }
        }
        Ok(stops)
    }
}

impl<'de> Deserialize<'de> for StopField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StopVisitor)
    }
}
