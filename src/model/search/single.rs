//! Search of one sequence. Each step selects the best token (greedy search), or samples a token.

use std::borrow::Cow;

use super::processors::Processors;
use super::sampling::Sampling;
use super::scores::{argmax, log_sum_exp};
use super::{Advance, RowScores, SearchStart, WantedScores};
use crate::engine::backend::BackendError;
use crate::task::{FinishReason, GenerationParams, Sequence, StopStrings, TokenLogprob};

/// State of greedy search or sampling of one sequence.
#[derive(Debug, Clone)]
pub struct SingleSearch {
    processors: Processors,
    sampling: Option<Sampling>,
    max_new_tokens: usize,
    stop_token: u32,
    stop_strings: Option<StopStrings>,
    /// Prompt tokens, followed by the new tokens.
    ids: Vec<u32>,
    tokens: Vec<TokenLogprob>,
}

impl SingleSearch {
    pub(super) fn new(params: &GenerationParams, start: SearchStart) -> Self {
        Self {
            processors: Processors::new(params, start.stop_token),
            sampling: Sampling::of(&params.strategy, start.sequence),
            max_new_tokens: params.max_new_tokens,
            stop_token: start.stop_token,
            stop_strings: params.stop_strings.clone(),
            ids: start.prompt,
            tokens: Vec::new(),
        }
    }

    pub(super) fn next_tokens(&self) -> Vec<u32> {
        self.tokens.last().map(|token| token.id).into_iter().collect()
    }

    pub(super) fn wanted(&self) -> WantedScores {
        match self.sampling {
            None if !self.processors.are_active() => WantedScores::Best(1),
            _ => WantedScores::All,
        }
    }

    pub(super) fn advance(&mut self, scores: RowScores<'_>) -> Result<Advance, BackendError> {
        let token = match scores {
            RowScores::All(logits) => self.choose(logits)?,
            RowScores::Best(best) => best.token(0),
        };
        self.tokens.push(token);
        self.ids.push(token.id);
        let finished = self.finish_reason(token.id).map(|finish_reason| {
            vec![Sequence { tokens: self.tokens.clone(), finish_reason, attention: None }]
        });
        let parents = if finished.is_some() { Vec::new() } else { vec![0] };
        Ok(Advance { token: Some(token), parents, generated: 1, finished })
    }

    /// Chooses the next token by the logits of the whole vocabulary.
    fn choose(&self, logits: &[f32]) -> Result<TokenLogprob, BackendError> {
        let normalizer = log_sum_exp(logits)?;
        let mut scores = Cow::Borrowed(logits);
        if self.processors.are_active() {
            self.processors.apply(scores.to_mut(), &self.ids, self.tokens.len());
        }
        let id = match &self.sampling {
            None => argmax(&scores),
            Some(sampling) => sampling.draw(&scores, self.tokens.len() as u64),
        };
        let logprob = (f64::from(logits[id]) - normalizer) as f32;
        Ok(TokenLogprob { id: id as u32, logprob })
    }

    /// Returns why the text ends with `last`, its last token; `None` if it goes on.
    fn finish_reason(&self, last: u32) -> Option<FinishReason> {
        let ends = |strings: &StopStrings| strings.end_the_text(self.ids.iter().rev().copied());
        if last == self.stop_token {
            Some(FinishReason::Stop)
        } else if self.stop_strings.as_ref().is_some_and(ends) {
            Some(FinishReason::StopString)
        } else if self.tokens.len() >= self.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::task::{Cutoffs, Strategy, TokenTexts};

    fn sampled(seed: u64, sequence: usize, top_k: usize, top_p: f32) -> SingleSearch {
        let strategy = Strategy::Sample {
            seed,
            num_return_sequences: 2,
            temperature: 1.0,
            top_k,
            top_p,
            cutoffs: Cutoffs::default(),
        };
        let params = GenerationParams { strategy, ..GenerationParams::greedy(8) };
        SingleSearch::new(&params, SearchStart { prompt: vec![1], stop_token: 0, sequence })
    }

    fn ids(search: &mut SingleSearch, logits: &[f32]) -> Vec<u32> {
        while search.advance(RowScores::All(logits)).unwrap().finished.is_none() {}
        search.tokens.iter().map(|token| token.id).collect()
    }

    #[test]
    fn a_seed_draws_the_same_text_again_and_sequences_differ() {
        let logits: Vec<f32> = std::iter::once(-50.0).chain((1..64).map(|_| 0.0)).collect();
        let first = ids(&mut sampled(7, 0, 0, 1.0), &logits);
        assert_eq!(first, ids(&mut sampled(7, 0, 0, 1.0), &logits));
        assert_ne!(first, ids(&mut sampled(7, 1, 0, 1.0), &logits));
        assert_ne!(first, ids(&mut sampled(8, 0, 0, 1.0), &logits));
    }

    #[test]
    fn top_k_of_one_and_a_tiny_nucleus_are_greedy() {
        let logits = [0.0, 0.5, 3.0, 1.0];
        for mut search in [sampled(3, 0, 1, 1.0), sampled(3, 0, 0, 1e-6)] {
            assert_eq!(ids(&mut search, &logits), [2; 8]);
        }
    }

    #[test]
    fn a_stop_string_ends_the_text_and_its_last_token_stays() {
        let texts: TokenTexts = [" [SEP]", " a", " cat", " sat"].into_iter().collect();
        let strings: [Arc<str>; 2] = ["dog".into(), "a cat".into()];
        let params = GenerationParams {
            stop_strings: Some(StopStrings::new(strings.into(), Arc::new(texts))),
            ..GenerationParams::greedy(8)
        };
        let start = SearchStart { prompt: vec![1], stop_token: 0, sequence: 0 };
        let mut search = SingleSearch::new(&params, start);
        let sequence = search
            .advance(RowScores::All(&[0.0, 0.0, 1.0, 0.0]))
            .unwrap()
            .finished
            .unwrap()
            .remove(0);
        assert_eq!(sequence.finish_reason, FinishReason::StopString);
        assert_eq!(sequence.text_ids(), [2]);
        // A stop string counts more than the length.
        let start = SearchStart { prompt: vec![1], stop_token: 0, sequence: 0 };
        let short = GenerationParams { max_new_tokens: 1, ..params.clone() };
        let mut search = SingleSearch::new(&short, start);
        let sequence = search
            .advance(RowScores::All(&[0.0, 0.0, 1.0, 0.0]))
            .unwrap()
            .finished
            .unwrap()
            .remove(0);
        assert_eq!(sequence.finish_reason, FinishReason::StopString);
        // The start of the text is another token now, so the string does not occur.
        let start = SearchStart { prompt: vec![3], stop_token: 0, sequence: 0 };
        let mut search = SingleSearch::new(&params, start);
        assert_eq!(search.advance(RowScores::All(&[0.0, 0.0, 1.0, 0.0])).unwrap().finished, None);
    }
}
