//! Turns the generation parameters of a request into [`GenerationParams`]: applies defaults, rejects conflicting
//! parameters and chooses the decoding strategy. The field types (`extract::fields`) have already checked the ranges.

use super::choices::EarlyStoppingField;
use super::fields::{
    Cutoff, Int, LengthPenalty, MinP, RepetitionPenalty, Temperature, TopP, TypicalP,
};
use super::generation_lists::{DecayField, Words};
use crate::http::error::{ApiError, Code, FieldError};
use crate::http::settings::Limits;
use crate::platform;
use crate::task::{Cutoffs, EarlyStopping, GenerationParams, Strategy};

/// Number of bits of a drawn seed. Every JSON parser represents integers below 2^53 exactly.
const SEED_BITS: u32 = 53;
pub(crate) const DEFAULT_MAX_NEW_TOKENS: usize = 20;
const DEFAULT_TOP_K: usize = 50;

/// The generation parameters as the client sent them; `None` if a parameter is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GenerationFields {
    pub(crate) max_new_tokens: Option<Int<1, 65_536>>,
    pub(crate) min_new_tokens: Option<Int<0, 65_536>>,
    pub(crate) num_beams: Option<Int<1, 8>>,
    pub(crate) num_return_sequences: Option<Int<1, 8>>,
    pub(crate) do_sample: Option<bool>,
    pub(crate) temperature: Option<Temperature>,
    pub(crate) top_k: Option<Int<0, 100_000>>,
    pub(crate) top_p: Option<TopP>,
    pub(crate) min_p: Option<MinP>,
    pub(crate) typical_p: Option<TypicalP>,
    pub(crate) epsilon_cutoff: Option<Cutoff>,
    pub(crate) eta_cutoff: Option<Cutoff>,
    pub(crate) repetition_penalty: Option<RepetitionPenalty>,
    pub(crate) no_repeat_ngram_size: Option<Int<0, 64>>,
    pub(crate) bad_words: Option<Words<128>>,
    pub(crate) exponential_decay_length_penalty: Option<DecayField>,
    pub(crate) stop_strings: Option<Words<16>>,
    pub(crate) length_penalty: Option<LengthPenalty>,
    pub(crate) early_stopping: Option<EarlyStoppingField>,
    pub(crate) renormalize_logits: Option<bool>,
    pub(crate) seed: Option<Int<0, 9_007_199_254_740_991>>,
}

impl GenerationFields {
    /// Returns the name of the first parameter that is present. `/vqa` rejects a request with both `candidates` and any
    /// of these parameters.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        self.given().into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// Returns the names of all parameters.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        Self::default().given().into_iter().map(|(name, _)| name)
    }

    /// Returns the name of each parameter, and whether it is present.
    fn given(&self) -> [(&'static str, bool); 21] {
        [
            ("max_new_tokens", self.max_new_tokens.is_some()),
            ("min_new_tokens", self.min_new_tokens.is_some()),
            ("num_beams", self.num_beams.is_some()),
            ("num_return_sequences", self.num_return_sequences.is_some()),
            ("do_sample", self.do_sample.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
            ("typical_p", self.typical_p.is_some()),
            ("epsilon_cutoff", self.epsilon_cutoff.is_some()),
            ("eta_cutoff", self.eta_cutoff.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size.is_some()),
            ("bad_words", self.bad_words.is_some()),
            ("exponential_decay_length_penalty", self.exponential_decay_length_penalty.is_some()),
            ("stop_strings", self.stop_strings.is_some()),
            ("length_penalty", self.length_penalty.is_some()),
            ("early_stopping", self.early_stopping.is_some()),
            ("renormalize_logits", self.renormalize_logits.is_some()),
            ("seed", self.seed.is_some()),
        ]
    }

    /// Applies the defaults and chooses the decoding strategy. Leaves `bad_words` and `stop_strings` out, because they
    /// need the tokenizer (see `http::inference::generation`).
    ///
    /// # Errors
    /// `invalid_request`, which lists all conflicts between the parameters; `text_too_long` if `max_new_tokens` exceeds
    /// `max_text_tokens`, the limit of the model.
    pub(crate) fn to_params(
        &self,
        limits: &Limits,
        max_text_tokens: usize,
    ) -> Result<GenerationParams, ApiError> {
        let max_new_tokens = count(
            self.max_new_tokens,
            DEFAULT_MAX_NEW_TOKENS.min(limits.max_new_tokens).min(max_text_tokens),
        );
        let min_new_tokens = count(self.min_new_tokens, 0);
        let num_beams = count(self.num_beams, 1);
        let num_return_sequences = count(self.num_return_sequences, 1);
        let sampling = self.do_sample.unwrap_or(false);

        let mut errors = self.without_effect(sampling, num_beams > 1);
        let mut conflict = |wrong: bool, field: &str, detail: String| {
            if wrong {
                errors.push(FieldError::new(field, detail));
            }
        };
        conflict(
            max_new_tokens > limits.max_new_tokens,
            "max_new_tokens",
            format!("an integer from 1 to {}, the limit of this server", limits.max_new_tokens),
        );
        conflict(
            min_new_tokens > max_new_tokens,
            "min_new_tokens",
            format!("at most max_new_tokens, which is {max_new_tokens}"),
        );
        conflict(
            sampling && num_beams > 1,
            "num_beams",
            "must be 1 with do_sample; sampling with beams is not supported".to_owned(),
        );
        conflict(
            !sampling && num_return_sequences > num_beams,
            "num_return_sequences",
            format!("at most num_beams, which is {num_beams}, unless do_sample is true"),
        );
        if !errors.is_empty() {
            return Err(ApiError::fields(Code::InvalidRequest, errors));
        }
        // The decoder needs one position for the start token and one for each new token except the last, which it never
        // reads: `max_new_tokens` positions in total.
        if max_new_tokens > max_text_tokens {
            let detail = format!("the model generates at most {max_text_tokens} tokens");
            return Err(ApiError::field(Code::TextTooLong, "max_new_tokens", detail));
        }
        Ok(GenerationParams {
            max_new_tokens,
            min_new_tokens,
            repetition_penalty: self.repetition_penalty.map_or(1.0, |penalty| penalty.0),
            no_repeat_ngram_size: count(self.no_repeat_ngram_size, 0),
            bad_words: None,
            exponential_decay_length_penalty: self
                .exponential_decay_length_penalty
                .map(|decay| decay.0),
            stop_strings: None,
            strategy: self.strategy(sampling, num_beams, num_return_sequences),
        })
    }

    fn strategy(&self, sampling: bool, num_beams: usize, num_return_sequences: usize) -> Strategy {
        if sampling {
            return Strategy::Sample {
                seed: self.seed.map_or_else(draw_seed, |seed| seed.0),
                num_return_sequences,
                temperature: self.temperature.map_or(1.0, |temperature| temperature.0),
                top_k: count(self.top_k, DEFAULT_TOP_K),
                top_p: self.top_p.map_or(1.0, |top_p| top_p.0),
                cutoffs: Cutoffs {
                    min_p: self.min_p.map_or(0.0, |min_p| min_p.0),
                    typical_p: self.typical_p.map_or(1.0, |typical_p| typical_p.0),
                    epsilon_cutoff: self.epsilon_cutoff.map_or(0.0, |cutoff| cutoff.0),
                    eta_cutoff: self.eta_cutoff.map_or(0.0, |cutoff| cutoff.0),
                },
            };
        }
        if num_beams == 1 {
            return Strategy::Greedy;
        }
        Strategy::Beams {
            num_beams,
            num_return_sequences,
            length_penalty: self.length_penalty.map_or(1.0, |penalty| penalty.0),
            early_stopping: match self.early_stopping {
                None | Some(EarlyStoppingField::Flag(false)) => EarlyStopping::Heuristic,
                Some(EarlyStoppingField::Flag(true)) => EarlyStopping::WhenFull,
                Some(EarlyStoppingField::Never) => EarlyStopping::Never,
            },
            renormalize_logits: self.renormalize_logits.unwrap_or(false),
        }
    }

    /// Returns an error for each parameter that has no effect with the chosen strategy, unless it has its default
    /// value.
    fn without_effect(&self, sampling: bool, beams: bool) -> Vec<FieldError> {
        let differs = |value: Option<f32>, default: f32| {
            value.is_some_and(|value| (value - default).abs() > 0.0)
        };
        let sampled = [
            ("temperature", differs(self.temperature.map(|value| value.0), 1.0)),
            ("top_k", self.top_k.is_some_and(|top_k| top_k.0 != DEFAULT_TOP_K as u64)),
            ("top_p", differs(self.top_p.map(|value| value.0), 1.0)),
            ("min_p", differs(self.min_p.map(|value| value.0), 0.0)),
            ("typical_p", differs(self.typical_p.map(|value| value.0), 1.0)),
            ("epsilon_cutoff", differs(self.epsilon_cutoff.map(|value| value.0), 0.0)),
            ("eta_cutoff", differs(self.eta_cutoff.map(|value| value.0), 0.0)),
            ("seed", self.seed.is_some()),
        ];
        let beamed = [
            ("length_penalty", differs(self.length_penalty.map(|value| value.0), 1.0)),
            (
                "early_stopping",
                self.early_stopping.is_some_and(|given| given != EarlyStoppingField::Flag(false)),
            ),
            ("renormalize_logits", self.renormalize_logits == Some(true)),
        ];
        let sampled = sampled.into_iter().map(|(field, set)| {
            (
                field,
                set && !sampling,
                "has no effect without do_sample; set do_sample or leave it out",
            )
        });
        let beamed = beamed.into_iter().map(|(field, set)| {
            (
                field,
                set && !beams,
                "has no effect without beams; set num_beams above 1 or leave it out",
            )
        });
        let idle = sampled.chain(beamed).filter(|(_, idle, _)| *idle);
        idle.map(|(field, _, detail)| FieldError::new(field, detail)).collect()
    }
}

/// Returns the seed to report in the response, whether the client gave it or the server drew it; `None` if the strategy
/// does not sample.
pub(crate) fn seed_of(params: &GenerationParams) -> Option<u64> {
    match params.strategy {
        Strategy::Sample { seed, .. } => Some(seed),
        Strategy::Greedy | Strategy::Beams { .. } => None,
    }
}

fn count<const MIN: u64, const MAX: u64>(given: Option<Int<MIN, MAX>>, default: usize) -> usize {
    given.map_or(default, |value| value.0 as usize)
}

/// Draws a seed. Seeds must differ between calls, but need not be secret.
fn draw_seed() -> u64 {
    platform::random() >> (u64::BITS - SEED_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(fields: &GenerationFields) -> Result<GenerationParams, Vec<String>> {
        fields
            .to_params(&Limits::default(), 512)
            .map_err(|error| error.errors.into_iter().map(|error| error.field).collect())
    }

    #[test]
    fn nothing_given_is_greedy_search_for_20_tokens() {
        assert_eq!(params(&GenerationFields::default()), Ok(GenerationParams::greedy(20)));
    }

    #[test]
    fn every_conflict_is_reported_with_its_field() {
        let fields = GenerationFields {
            num_beams: Some(Int(4)),
            do_sample: Some(true),
            early_stopping: None,
            max_new_tokens: Some(Int(5)),
            min_new_tokens: Some(Int(6)),
            ..GenerationFields::default()
        };
        assert_eq!(params(&fields), Err(vec!["min_new_tokens".into(), "num_beams".into()]));
    }

    #[test]
    fn parameters_without_effect_are_refused_and_defaults_are_not() {
        let idle = GenerationFields {
            temperature: Some(Temperature(0.5)),
            top_k: Some(Int(10)),
            top_p: Some(TopP(0.5)),
            min_p: Some(MinP(0.5)),
            typical_p: Some(TypicalP(0.5)),
            epsilon_cutoff: Some(Cutoff(0.5)),
            eta_cutoff: Some(Cutoff(0.5)),
            seed: Some(Int(1)),
            length_penalty: Some(LengthPenalty(2.0)),
            early_stopping: Some(EarlyStoppingField::Never),
            renormalize_logits: Some(true),
            ..GenerationFields::default()
        };
        let refused = params(&idle).unwrap_err();
        assert_eq!(
            refused,
            [
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "typical_p",
                "epsilon_cutoff",
                "eta_cutoff",
                "seed",
                "length_penalty",
                "early_stopping",
                "renormalize_logits"
            ]
        );

        let defaults = GenerationFields {
            temperature: Some(Temperature(1.0)),
            top_k: Some(Int(50)),
            top_p: Some(TopP(1.0)),
            min_p: Some(MinP(0.0)),
            typical_p: Some(TypicalP(1.0)),
            epsilon_cutoff: Some(Cutoff(0.0)),
            eta_cutoff: Some(Cutoff(0.0)),
            renormalize_logits: Some(false),
            length_penalty: Some(LengthPenalty(1.0)),
            early_stopping: Some(EarlyStoppingField::Flag(false)),
            ..GenerationFields::default()
        };
        assert_eq!(params(&defaults), Ok(GenerationParams::greedy(20)));
    }

    #[test]
    fn more_sequences_than_beams_need_sampling() {
        let fields = GenerationFields { num_return_sequences: Some(Int(3)), ..Default::default() };
        assert_eq!(params(&fields), Err(vec!["num_return_sequences".to_owned()]));
        let sampled = GenerationFields { do_sample: Some(true), ..fields };
        assert_eq!(params(&sampled).map(|params| params.rows()), Ok(3));
    }

    #[test]
    fn the_servers_own_limit_of_new_tokens_is_named() {
        let fields = GenerationFields { max_new_tokens: Some(Int(65)), ..Default::default() };
        let error = fields.to_params(&Limits::default(), 512).unwrap_err();
        assert_eq!(
            error.detail,
            "max_new_tokens: an integer from 1 to 64, the limit of this server"
        );
    }

    #[test]
    fn a_model_of_few_positions_shortens_the_default_and_refuses_a_wish() {
        let short = |max_new_tokens| {
            let fields = GenerationFields { max_new_tokens, ..GenerationFields::default() };
            fields.to_params(&Limits::default(), 12)
        };
        assert_eq!(short(None), Ok(GenerationParams::greedy(12)));
        assert_eq!(short(Some(Int(12))), Ok(GenerationParams::greedy(12)));
        let refused = short(Some(Int(13))).unwrap_err();
        assert_eq!(refused.code, Code::TextTooLong);
        assert_eq!(refused.detail, "max_new_tokens: the model generates at most 12 tokens");
        // The server's own limit is checked first, so the model's limit does not matter here.
        let refused = short(Some(Int(1000))).unwrap_err();
        assert_eq!((refused.code, refused.errors.len()), (Code::InvalidRequest, 1));
        assert!(refused.detail.contains("from 1 to 64"), "{}", refused.detail);
    }

    #[test]
    fn a_seed_is_drawn_below_two_to_the_53_and_differs_between_calls() {
        let seeds: std::collections::HashSet<u64> = (0..8).map(|_| draw_seed()).collect();
        assert_eq!(seeds.len(), 8);
        assert!(seeds.iter().all(|seed| *seed < 1 << SEED_BITS));
    }
}
