//! `requests!` declares what an endpoint takes: the single call, the batch call, and one input of a batch, from
//! one list of fields. Serde cannot flatten a struct and refuse unknown fields at once, hence a macro.
//!
//! An endpoint whose input ends in `generation` has the flat generation parameters as well.

/// A request type that all three encodings can fill.
pub(crate) trait Request: serde::de::DeserializeOwned + Send + 'static {
    /// In multipart and raw bodies each image is one input.
    const BATCH: bool;
}

macro_rules! requests {
    (
        $(#[$single_attr:meta])* single $Single:ident { $($(#[doc = $single_doc:literal])+ $single_field:ident: $single_type:ty,)* }
        $(#[$batch_attr:meta])* batch $Batch:ident
        $(#[$input_attr:meta])* input $Input:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)* } generation
    ) => {
        $crate::http::extract::request::requests! {
            $(#[$single_attr])* single $Single { $($(#[doc = $single_doc])+ $single_field: $single_type,)* }
            $(#[$batch_attr])* batch $Batch
            $(#[$input_attr])* input $Input {
                $($(#[doc = $doc])+ $field: $type,)*
                /// Most tokens to generate, the stop token included; 20 by default, at most 64 unless the server is set otherwise.
                max_new_tokens: $crate::http::extract::fields::Int<1, 65_536>,
                /// Tokens before which the text may not end; 0 by default, at most `max_new_tokens`.
                min_new_tokens: $crate::http::extract::fields::Int<0, 65_536>,
                /// Beams of a beam search; 1 (none) by default.
                num_beams: $crate::http::extract::fields::Int<1, 8>,
                /// Sequences in the answer; 1 by default, at most `num_beams` unless sampling.
                num_return_sequences: $crate::http::extract::fields::Int<1, 8>,
                /// Draws tokens at random instead of taking the most probable; false by default.
                do_sample: bool,
                /// Sampling: divides the logits; 1.0 by default.
                temperature: $crate::http::extract::fields::Temperature,
                /// Sampling: keeps the k most probable tokens, 0 keeps all; 50 by default.
                top_k: $crate::http::extract::fields::Int<0, 100_000>,
                /// Sampling: keeps the smallest set of tokens whose probabilities reach this; 1.0 by default.
                top_p: $crate::http::extract::fields::TopP,
                /// Above 1 makes tokens that are already present less probable; 1.0 by default.
                repetition_penalty: $crate::http::extract::fields::RepetitionPenalty,
                /// No sequence of this many tokens occurs twice; 0 (off) by default.
                no_repeat_ngram_size: $crate::http::extract::fields::Int<0, 64>,
                /// Beams: exponent of the length that divides a beam's score; 1.0 by default.
                length_penalty: $crate::http::extract::fields::LengthPenalty,
                /// Beams: when to stop looking for better ones; false by default.
                early_stopping: $crate::http::extract::fields::EarlyStoppingField,
                /// Sampling: makes the draw repeatable; drawn and reported when left out.
                seed: $crate::http::extract::fields::Int<0, 9_007_199_254_740_991>,
            }
        }

        impl $Input {
            /// The generation parameters as the client gave them.
            fn generation(&self) -> $crate::http::generation::GenerationFields {
                $crate::http::generation::GenerationFields {
                    max_new_tokens: self.max_new_tokens,
                    min_new_tokens: self.min_new_tokens,
                    num_beams: self.num_beams,
                    num_return_sequences: self.num_return_sequences,
                    do_sample: self.do_sample,
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    repetition_penalty: self.repetition_penalty,
                    no_repeat_ngram_size: self.no_repeat_ngram_size,
                    length_penalty: self.length_penalty,
                    early_stopping: self.early_stopping,
                    seed: self.seed,
                }
            }
        }
    };
    (
        $(#[$single_attr:meta])* single $Single:ident { $($(#[doc = $single_doc:literal])+ $single_field:ident: $single_type:ty,)* }
        $(#[$batch_attr:meta])* batch $Batch:ident
        $(#[$input_attr:meta])* input $Input:ident { $($(#[doc = $doc:literal])+ $field:ident: $type:ty,)* }
    ) => {
        #[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$single_attr])*
        pub(crate) struct $Single {
            /// A loaded model's name; the first of the endpoint's role by default.
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
            /// A loaded model's name; the first of the endpoint's role by default.
            #[serde(default, deserialize_with = "crate::http::extract::fields::present")]
            #[schema(value_type = $crate::http::extract::fields::Text, inline, required = false)]
            pub(crate) model: Option<$crate::http::extract::fields::Text>,
            /// The inputs, answered in order. A field that stands beside them is a default for each; an input's own wins.
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

        impl $Single {
            /// The one input of a single call.
            fn into_input(self) -> $Input {
                $Input { $($field: self.$field,)* }
            }
        }

        impl $Batch {
            /// The inputs with their defaults filled in; `yields` first clears defaults that an input replaces
            /// by another name.
            fn into_inputs(self, yields: fn(&$Input, &mut $Input)) -> Vec<$Input> {
                let defaults = $Input { $($field: self.$field,)* };
                let fill = |input: $Input| {
                    let mut defaults = defaults.clone();
                    yields(&input, &mut defaults);
                    $Input { $($field: input.$field.or(defaults.$field),)* }
                };
                self.inputs.into_iter().map(fill).collect()
            }
        }

        impl $crate::http::extract::request::Request for $Single {
            const BATCH: bool = false;
        }

        impl $crate::http::extract::request::Request for $Batch {
            const BATCH: bool = true;
        }
    };
}

pub(crate) use requests;
