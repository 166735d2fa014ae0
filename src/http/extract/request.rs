//! The `requests!` macro, which declares the request types of an endpoint from one list of fields: the single call, the
//! batch call, and one input of a batch. It is a macro because serde cannot both flatten a struct and reject unknown
//! fields.
//!
//! If the keyword `generation` follows the fields of an input, the requests also get the generation parameters, as flat
//! fields. `alternatives image | images, text | texts` lists groups of mutually exclusive fields. If an input of a
//! batch sets one field of a group, the batch-wide defaults for the other fields of that group do not apply to it. The
//! doc comments of all fields become their descriptions in the OpenAPI document.

use utoipa::ToSchema;

use super::fields::Text;

/// A request type that can be parsed from JSON, multipart and raw bodies.
pub(crate) trait Request: serde::de::DeserializeOwned + ToSchema + Send + 'static {
    /// True for a batch call, in which each `image` of a multipart or raw body is one input.
    const BATCH: bool;
    /// One input as sent by the client.
    type Input: ToSchema + Send + 'static;

    /// True if the field of this name is a list, which a form fills by repeating the name.
    fn is_list(field: &str) -> bool;
}

/// The request of a single call.
pub(crate) trait SingleRequest: Request {
    /// The fields that only the single call has, as a tuple.
    type Extras: Send + 'static;

    /// Splits the request into the name of the model, the input, and the fields that only the single call has.
    fn into_parts(self) -> (Option<Text>, Self::Input, Self::Extras);
}

/// The request of a batch call.
pub(crate) trait BatchRequest: Request {
    /// Splits the request into the name of the model and the inputs. A field that an input leaves out gets the default
    /// given outside `inputs`. If an input has one field of a group of alternatives, the other fields of that group get
    /// no default.
    fn into_parts(self) -> (Option<Text>, Vec<Self::Input>);
}

macro_rules! requests {
    (
        $(#[$single_attr:meta])* single $Single:ident { $($(#[doc = $single_doc:literal])+ $single_field:ident: $single_type:ty,)* }
        $(#[$batch_attr:meta])* batch $Batch:ident
        $(#[$input_attr:meta])* input $Input:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)* } generation
        $(alternatives $($($alternative:ident)|+),+)?
    ) => {
        $crate::http::extract::request::requests! {
            $(#[$single_attr])* single $Single { $($(#[doc = $single_doc])+ $single_field: $single_type,)* }
            $(#[$batch_attr])* batch $Batch
            $(#[$input_attr])* input $Input {
                $($(#[doc = $doc])+ $field: $type,)*
                /// Maximum new tokens, including the stop token; default 20, at most 64 unless configured otherwise.
                max_new_tokens: $crate::http::extract::fields::Int<1, 65_536>,
                /// Minimum new tokens; default 0, at most `max_new_tokens`.
                min_new_tokens: $crate::http::extract::fields::Int<0, 65_536>,
                /// Number of beams; default 1 (no beam search).
                num_beams: $crate::http::extract::fields::Int<1, 8>,
                /// Sequences to return; default 1, at most `num_beams` unless sampling.
                num_return_sequences: $crate::http::extract::fields::Int<1, 8>,
                /// Samples tokens instead of taking the most probable ones; default false.
                do_sample: bool,
                /// Only for sampling: the logits are divided by this value. Higher values give more varied texts;
                /// default 1.0.
                temperature: $crate::http::extract::fields::Temperature,
                /// Only for sampling: keeps the k likeliest tokens, or all tokens if 0; default 50.
                top_k: $crate::http::extract::fields::Int<0, 100_000>,
                /// Only for sampling: keeps the likeliest tokens that together reach this probability; default 1.0.
                top_p: $crate::http::extract::fields::TopP,
                /// Only for sampling: removes tokens less probable than this fraction of the likeliest token; default
                /// 0.0.
                min_p: $crate::http::extract::fields::MinP,
                /// Only for sampling: keeps the most typical tokens that together reach this probability; default 1.0.
                typical_p: $crate::http::extract::fields::TypicalP,
                /// Only for sampling: removes tokens less probable than this; default 0.0.
                epsilon_cutoff: $crate::http::extract::fields::Cutoff,
                /// Only for sampling: like `epsilon_cutoff`, but lower where many tokens are possible; default 0.0.
                eta_cutoff: $crate::http::extract::fields::Cutoff,
                /// Values above 1 make tokens that are already in the text less probable; default 1.0.
                repetition_penalty: $crate::http::extract::fields::RepetitionPenalty,
                /// No sequence of this many tokens occurs twice; default 0 (off).
                no_repeat_ngram_size: $crate::http::extract::fields::Int<0, 64>,
                /// Words or phrases that are not generated. Each bans exactly its tokens: list other forms of a word
                /// too.
                bad_words: $crate::http::extract::generation_lists::Words<128>,
                /// Start and factor: with more generated tokens than the start, the end of the text becomes more
                /// probable with each token (less probable if the factor is below 1).
                exponential_decay_length_penalty: $crate::http::extract::generation_lists::DecayField,
                /// The text ends with the first token that completes one of these strings, which stays in the text.
                stop_strings: $crate::http::extract::generation_lists::Words<16>,
                /// Only for beam search: scores are divided by the text's length raised to this power. Higher values
                /// favour longer texts; default 1.0.
                length_penalty: $crate::http::extract::fields::LengthPenalty,
                /// Only for beam search: with `true`, the search stops once `num_beams` texts are finished; with
                /// `false` (default), once better texts are unlikely; with `"never"`, once better texts are impossible.
                early_stopping: $crate::http::extract::choices::EarlyStoppingField,
                /// Only for beam search: normalizes the scores again after all other parameters; default false.
                renormalize_logits: bool,
                /// Only for sampling: the same seed reproduces the same samples. If the seed is missing, a random seed
                /// is drawn and reported in the answer.
                seed: $crate::http::extract::fields::Int<0, 9_007_199_254_740_991>,
            }
            $(alternatives $($($alternative)|+),+)?
        }

        impl $Input {
            /// Sets all generation parameters.
            pub(crate) fn with_generation(
                self,
                fields: $crate::http::extract::generation::GenerationFields,
            ) -> Self {
                Self {
                    max_new_tokens: fields.max_new_tokens,
                    min_new_tokens: fields.min_new_tokens,
                    num_beams: fields.num_beams,
                    num_return_sequences: fields.num_return_sequences,
                    do_sample: fields.do_sample,
                    temperature: fields.temperature,
                    top_k: fields.top_k,
                    top_p: fields.top_p,
                    min_p: fields.min_p,
                    typical_p: fields.typical_p,
                    epsilon_cutoff: fields.epsilon_cutoff,
                    eta_cutoff: fields.eta_cutoff,
                    repetition_penalty: fields.repetition_penalty,
                    no_repeat_ngram_size: fields.no_repeat_ngram_size,
                    bad_words: fields.bad_words,
                    exponential_decay_length_penalty: fields.exponential_decay_length_penalty,
                    stop_strings: fields.stop_strings,
                    length_penalty: fields.length_penalty,
                    early_stopping: fields.early_stopping,
                    renormalize_logits: fields.renormalize_logits,
                    seed: fields.seed,
                    ..self
                }
            }

            /// Returns the generation parameters as the client sent them. Conflicts between them have not been checked
            /// yet.
            fn generation(&self) -> $crate::http::extract::generation::GenerationFields {
                $crate::http::extract::generation::GenerationFields {
                    max_new_tokens: self.max_new_tokens,
                    min_new_tokens: self.min_new_tokens,
                    num_beams: self.num_beams,
                    num_return_sequences: self.num_return_sequences,
                    do_sample: self.do_sample,
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    epsilon_cutoff: self.epsilon_cutoff,
                    eta_cutoff: self.eta_cutoff,
                    repetition_penalty: self.repetition_penalty,
                    no_repeat_ngram_size: self.no_repeat_ngram_size,
                    bad_words: self.bad_words.clone(),
                    exponential_decay_length_penalty: self.exponential_decay_length_penalty,
                    stop_strings: self.stop_strings.clone(),
                    length_penalty: self.length_penalty,
                    early_stopping: self.early_stopping,
                    renormalize_logits: self.renormalize_logits,
                    seed: self.seed,
                }
            }
        }
    };
    (
        $(#[$single_attr:meta])* single $Single:ident { $($(#[doc = $single_doc:literal])+ $single_field:ident: $single_type:ty,)* }
        $(#[$batch_attr:meta])* batch $Batch:ident
        $(#[$input_attr:meta])* input $Input:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)* }
        $(alternatives $($($alternative:ident)|+),+)?
    ) => {
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$single_attr])*
        pub(crate) struct $Single {
            /// Name of a loaded model; default: the first that serves this endpoint.
            #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
            #[schema(value_type = $crate::http::extract::fields::Text, inline, required = false)]
            pub(crate) model: Option<$crate::http::extract::fields::Text>,
            $(
                $(#[doc = $single_doc])+
                #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
                #[schema(value_type = $single_type, inline, required = false)]
                pub(crate) $single_field: Option<$single_type>,
            )*
            $(
                $(#[doc = $doc])+
                #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
                #[schema(value_type = $type, inline, required = false)]
                pub(crate) $field: Option<$type>,
            )*
        }

        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$batch_attr])*
        pub(crate) struct $Batch {
            /// Name of a loaded model; default: the first that serves this endpoint.
            #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
            #[schema(value_type = $crate::http::extract::fields::Text, inline, required = false)]
            pub(crate) model: Option<$crate::http::extract::fields::Text>,
            /// The inputs, answered in order. The other fields are defaults for the inputs; an input's own field takes
            /// precedence.
            #[serde(deserialize_with = "crate::http::extract::fields::objects")]
            #[schema(min_items = 1)]
            pub(crate) inputs: Vec<$Input>,
            $(
                $(#[doc = $doc])+
                #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
                #[schema(value_type = $type, inline, required = false)]
                pub(crate) $field: Option<$type>,
            )*
        }

        #[derive(Debug, Clone, Default, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$input_attr])*
        pub(crate) struct $Input {
            $(
                $(#[doc = $doc])+
                #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
                #[schema(value_type = $type, inline, required = false)]
                pub(crate) $field: Option<$type>,
            )*
        }

        impl $crate::http::extract::request::Request for $Single {
            const BATCH: bool = false;
            type Input = $Input;

            fn is_list(field: &str) -> bool {
                use $crate::http::extract::fields::Field;
                $((field == stringify!($single_field) && <$single_type as Field>::IS_LIST) ||)*
                $((field == stringify!($field) && <$type as Field>::IS_LIST) ||)* false
            }
        }

        impl $crate::http::extract::request::SingleRequest for $Single {
            type Extras = ($(Option<$single_type>,)*);

            fn into_parts(
                self,
            ) -> (Option<$crate::http::extract::fields::Text>, $Input, Self::Extras) {
                (self.model, $Input { $($field: self.$field,)* }, ($(self.$single_field,)*))
            }
        }

        impl $crate::http::extract::request::Request for $Batch {
            const BATCH: bool = true;
            type Input = $Input;

            fn is_list(field: &str) -> bool {
                <$Single as $crate::http::extract::request::Request>::is_list(field)
            }
        }

        impl $crate::http::extract::request::BatchRequest for $Batch {
            fn into_parts(self) -> (Option<$crate::http::extract::fields::Text>, Vec<$Input>) {
                let defaults = $Input { $($field: self.$field,)* };
                let fill = |input: $Input| {
                    let defaults = defaults.clone();
                    $($(
                        let defaults = if $(input.$alternative.is_some())||+ {
                            $Input { $($alternative: None,)+ ..defaults }
                        } else {
                            defaults
                        };
                    )+)?
                    $Input { $($field: input.$field.or(defaults.$field),)* }
                };
                (self.model, self.inputs.into_iter().map(fill).collect())
            }
        }
    };
}

pub(crate) use requests;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::routes::caption::CaptionRequest;
    use crate::http::routes::similarity::SimilarityBatchRequest;

    #[test]
    fn an_input_that_gives_an_alternative_gets_no_default_for_the_others() {
        let request = json!({
            "model": "m",
            "image": "i",
            "texts": ["a", "b"],
            "scores": ["cosine"],
            "inputs": [{}, {"text": "c"}, {"images": ["j", "k"]}, {"image": "l", "texts": ["d"]}],
        });
        let request: SimilarityBatchRequest = serde_json::from_value(request).unwrap();
        let (model, inputs) = request.into_parts();
        assert_eq!(&*model.unwrap().0, "m");
        let given = inputs.iter().map(|input| {
            assert!(input.scores.is_some());
            let images = input.images.as_ref().map_or(0, Vec::len);
            let texts = input.texts.as_ref().map_or(0, Vec::len);
            (input.image.is_some(), images, input.text.is_some(), texts)
        });
        let expected =
            [(true, 0, false, 2), (true, 0, true, 0), (false, 2, false, 2), (true, 0, false, 1)];
        assert_eq!(given.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_single_request_gives_its_model_its_input_and_its_own_fields() {
        let request = json!({"model": "m", "image": "i", "prompt": "p", "stream": true});
        let request: CaptionRequest = serde_json::from_value(request).unwrap();
        let (model, input, extras) = request.into_parts();
        assert_eq!((&*model.unwrap().0, extras), ("m", (Some(true),)));
        assert_eq!(&*input.prompt.unwrap().0, "p");
        assert!(input.image.is_some());
    }

    #[test]
    fn the_list_fields_of_a_request_follow_from_their_types() {
        let is_list = SimilarityBatchRequest::is_list;
        for list in ["images", "texts", "scores"] {
            assert!(is_list(list), "{list}");
        }
        for other in ["image", "text", "model", "inputs", "questions"] {
            assert!(!is_list(other), "{other}");
        }
    }
}
