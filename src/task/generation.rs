//! Decoding parameters, and generated text: token ids, log-probabilities, and the finish reason.

use std::sync::Arc;

use super::StopStrings;

/// Parameters of one generation. Each parameter has the same meaning and effect as in the `generate` method of
/// `transformers`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// Maximum number of generated tokens, stop token included; at least 1.
    pub max_new_tokens: usize,
    /// Number of tokens that must be generated before the stop token is allowed; at most `max_new_tokens`.
    pub min_new_tokens: usize,
    /// Penalty on tokens that already occur in the sequence: their positive scores are divided by it, and their
    /// negative scores are multiplied by it; 1.0 has no effect.
    pub repetition_penalty: f32,
    /// No n-gram of this size may occur twice; 0 disables the check.
    pub no_repeat_ngram_size: usize,
    /// Sequences of tokens that are never generated (`bad_words_ids` of `transformers`); none of them is empty. The
    /// tokens are those of the text alone, without `[CLS]` and `[SEP]`.
    pub bad_words: Option<Arc<[Box<[u32]>]>>,
    /// Raises (or lowers) the score of the stop token step by step; `None` has no effect.
    pub exponential_decay_length_penalty: Option<ExponentialDecay>,
    /// Strings that end the generation as soon as the text contains one of them.
    pub stop_strings: Option<StopStrings>,
    /// Decoding strategy: how the next token is chosen.
    pub strategy: Strategy,
}

/// Decoding strategy: how the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// Greedy search: always the most probable token.
    Greedy,
    /// Beam search over several hypotheses.
    Beams {
        /// Number of beams kept, 2 or more.
        num_beams: usize,
        /// Number of sequences returned, 1..=`num_beams`.
        num_return_sequences: usize,
        /// Exponent of the length. A finished beam's score is divided by its length to this power.
        length_penalty: f32,
        /// When to stop searching for better beams.
        early_stopping: EarlyStopping,
        /// Whether the scores of each step are turned into log-probabilities again after all processors.
        renormalize_logits: bool,
    },
    /// Seeded sampling. The noise depends only on the seed, the sequence and the step, so batch neighbours do not
    /// change a sequence.
    Sample {
        /// Seed that reproduces the same samples, 0..2^53.
        seed: u64,
        /// Number of sequences to draw, at least 1.
        num_return_sequences: usize,
        /// Temperature by which the logits are divided; above 0.
        temperature: f32,
        /// Keeps this number of most probable tokens, and all tokens as probable as the last of them; 0 keeps all.
        top_k: usize,
        /// Nucleus sampling: keeps the smallest set of tokens whose probabilities sum to at least this; 1.0 keeps all.
        top_p: f32,
        /// Further cutoffs of tokens, applied after `top_p`.
        cutoffs: Cutoffs,
    },
}

/// Cutoffs of sampling, in the order in which they are applied. Each one sees the distribution over the tokens that the
/// one before has kept, and keeps at least one token. The default keeps all tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cutoffs {
    /// Removes tokens whose probability is below this fraction of the highest probability, 0..=1; 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling: keeps the tokens whose information content is closest to the entropy of the
    /// distribution, until their probabilities sum to this value, above 0; 1.0 keeps all.
    pub typical_p: f32,
    /// Removes tokens whose probability is below this value, 0..1; 0 keeps all.
    pub epsilon_cutoff: f32,
    /// Removes tokens whose probability is below the smaller of this value `e` and `sqrt(e) * exp(-entropy)`, 0..1; 0
    /// keeps all.
    pub eta_cutoff: f32,
}

impl Default for Cutoffs {
    fn default() -> Self {
        Self { min_p: 0.0, typical_p: 1.0, epsilon_cutoff: 0.0, eta_cutoff: 0.0 }
    }
}

/// The `exponential_decay_length_penalty` parameter. With more than `start` generated tokens, `n` tokens beyond it, the
/// score of the stop token grows by its absolute value times `factor^n - 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExponentialDecay {
    /// Number of generated tokens up to which the penalty has no effect.
    pub start: usize,
    /// Base of the penalty; above 0. Values above 1 favour the end of the text; values below 1 postpone it.
    pub factor: f64,
}

/// The `early_stopping` parameter of beam search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: stop when no running beam, at its current length, can beat the worst finished one.
    Heuristic,
    /// `true`: stop as soon as `num_beams` beams have finished.
    WhenFull,
    /// `"never"`: like `false`, but the running beam is assumed to reach its most favourable length.
    Never,
}

impl GenerationParams {
    /// Returns parameters for a greedy search that generates at most `max_new_tokens` tokens. All other parameters are
    /// set so that they have no effect.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words: None,
            exponential_decay_length_penalty: None,
            stop_strings: None,
            strategy: Strategy::Greedy,
        }
    }

    /// Returns the number of rows that one generation occupies: one for each beam or each sequence to draw.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.groups() * self.rows_per_group()
    }

    /// Returns the number of groups of one generation. Each sampled sequence is a separate group; the beams of a beam
    /// search form one group.
    #[must_use]
    pub fn groups(&self) -> usize {
        match self.strategy {
            Strategy::Greedy | Strategy::Beams { .. } => 1,
            Strategy::Sample { num_return_sequences, .. } => num_return_sequences,
        }
    }

    /// Returns the number of rows that one group occupies: one for each beam.
    #[must_use]
    pub fn rows_per_group(&self) -> usize {
        match self.strategy {
            Strategy::Beams { num_beams, .. } => num_beams,
            Strategy::Greedy | Strategy::Sample { .. } => 1,
        }
    }

    /// Returns the number of sequences that one group returns when it finishes.
    #[must_use]
    pub fn sequences_per_group(&self) -> usize {
        match self.strategy {
            Strategy::Beams { num_return_sequences, .. } => num_return_sequences,
            Strategy::Greedy | Strategy::Sample { .. } => 1,
        }
    }
}

/// Why the generation of a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model generated the stop token.
    Stop,
    /// The text contains a stop string, which ends in the last token.
    StopString,
    /// The sequence reached `max_new_tokens` tokens.
    Length,
}

/// One generated token with its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id in the model's vocabulary.
    pub id: u32,
    /// Natural log-probability under the model's unmodified distribution.
    pub logprob: f32,
}

/// Cross-attention weights of one token over the patches of an image, row by row, averaged over heads and layers. The
/// weight of the class token is left out, so they sum to less than 1.
pub type PatchWeights = Vec<f32>;

/// One generated sequence: only the new tokens, with the stop token if there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// The new tokens, in order of generation.
    pub tokens: Vec<TokenLogprob>,
    /// Why the generation of this sequence ended.
    pub finish_reason: FinishReason,
    /// For each token, the weights with which the step that chose it attended to the patches of the image. Only if an
    /// explanation was requested.
    pub attention: Option<Vec<PatchWeights>>,
}

impl Sequence {
    /// Returns the sum of the tokens' log-probabilities.
    #[must_use]
    pub fn logprob(&self) -> f32 {
        self.tokens.iter().map(|token| token.logprob).sum()
    }

    /// Returns the ids of the generated text: the new tokens without the stop token.
    #[must_use]
    pub fn text_ids(&self) -> Vec<u32> {
        let kept = match self.finish_reason {
            FinishReason::Stop => self.tokens.len().saturating_sub(1),
            FinishReason::StopString | FinishReason::Length => self.tokens.len(),
        };
        self.tokens[..kept].iter().map(|token| token.id).collect()
    }
}
