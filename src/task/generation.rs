//! How text is generated, and the text as it comes out: ids, log-probabilities, the reason it ended.

/// Parameters of one generation, meaning and results those of `transformers`' `generate`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// Most tokens to generate, stop token included; at least 1.
    pub max_new_tokens: usize,
    /// Tokens before which the stop token is forbidden; at most `max_new_tokens`.
    pub min_new_tokens: usize,
    /// Divides (positive) or multiplies (negative) the scores of tokens already present; 1.0 changes nothing.
    pub repetition_penalty: f32,
    /// No n-gram of this size occurs twice; 0 switches it off.
    pub no_repeat_ngram_size: usize,
    /// How the next token is chosen.
    pub strategy: Strategy,
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// The most probable token.
    Greedy,
    /// Beam search.
    Beams {
        /// Beams kept, 2 or more.
        num_beams: usize,
        /// Sequences returned, 1..=`num_beams`.
        num_return_sequences: usize,
        /// Exponent of the length that divides a finished beam's score.
        length_penalty: f32,
        /// When to stop looking for better beams.
        early_stopping: EarlyStopping,
    },
    /// Seeded sampling; noise is keyed by (seed, sequence, step), so company does not change a text.
    Sample {
        /// 0..2^53.
        seed: u64,
        /// Sequences drawn, at least 1.
        num_return_sequences: usize,
        /// Divides the logits; above 0.
        temperature: f32,
        /// Keeps the k best tokens; 0 keeps all.
        top_k: usize,
        /// Keeps the smallest set of tokens whose probabilities reach this; 1.0 keeps all.
        top_p: f32,
    },
}

/// `early_stopping` of beam search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: stop when no running beam can, at its current length, beat the worst finished one.
    Heuristic,
    /// `true`: stop as soon as `num_beams` have finished.
    WhenFull,
    /// `"never"`: as `false`, with the most favourable length.
    Never,
}

impl GenerationParams {
    /// Greedy search for at most `max_new_tokens`, nothing else set.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self {
            max_new_tokens,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            strategy: Strategy::Greedy,
        }
    }

    /// Rows that one generation with these parameters occupies: beams, or sequences drawn.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self.strategy {
            Strategy::Greedy => 1,
            Strategy::Beams { num_beams, .. } => num_beams,
            Strategy::Sample { num_return_sequences, .. } => num_return_sequences,
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The stop token.
    Stop,
    /// `max_new_tokens`.
    Length,
}

/// One generated token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability under the model's unmodified distribution.
    pub logprob: f32,
}

/// One generated sequence: the new tokens alone, the stop token included where there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// The new tokens in order.
    pub tokens: Vec<TokenLogprob>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Sequence {
    /// Sum of the tokens' log-probabilities.
    #[must_use]
    pub fn logprob(&self) -> f32 {
        self.tokens.iter().map(|token| token.logprob).sum()
    }

    /// The ids of the text: the new tokens without the stop token.
    #[must_use]
    pub fn text_ids(&self) -> Vec<u32> {
        let kept = match self.finish_reason {
            FinishReason::Stop => self.tokens.len().saturating_sub(1),
            FinishReason::Length => self.tokens.len(),
        };
        self.tokens[..kept].iter().map(|token| token.id).collect()
    }
}
