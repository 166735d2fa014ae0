//! Beam search. Source: transformers 5.23 `GenerationMixin._beam_search` and the functions that it calls. The
//! arithmetic is the same (in f32, with the score -1e9 for choices that are not allowed), so that the token ids are
//! equal to those of transformers.

use super::processors::Processors;
use super::scores::{log_softmax, renormalize, top_indices};
use super::{Advance, RowScores, SearchStart, WantedScores};
use crate::engine::backend::BackendError;
use crate::model::ops::BestTokens;
use crate::task::{
    EarlyStopping, FinishReason, GenerationParams, Sequence, StopStrings, Strategy, TokenLogprob,
};

/// Score that transformers gives to a choice that is not allowed. It is finite.
const UNLIKELY: f32 = -1.0e9;

/// State of one beam search.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    processors: Processors,
    num_beams: usize,
    num_return_sequences: usize,
    length_penalty: f32,
    early_stopping: EarlyStopping,
    renormalize_logits: bool,
    max_new_tokens: usize,
    stop_token: u32,
    stop_strings: Option<StopStrings>,
    prompt: Vec<u32>,
    /// Running beams, best first. There are always `num_beams` of them.
    running: Vec<Beam>,
    /// The best finished beams, best first. There are always `num_beams` of them; while fewer beams have finished,
    /// placeholders that are not `done` fill the list.
    finished: Vec<Beam>,
    /// False once no running beam can improve on the finished beams. It then stays false.
    improvable: bool,
    generated: usize,
}

#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<TokenLogprob>,
    /// Sum of the processed log-probabilities; for finished beams, with the length penalty applied.
    score: f32,
    done: bool,
}

/// A continuation of one running beam by one token.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    score: f32,
    beam: usize,
    token: TokenLogprob,
    hits_stop: bool,
}

impl BeamSearch {
    /// Creates a search that has not run a step yet. `params.strategy` should be `Beams`; any other strategy is treated
    /// as a single beam.
    pub(super) fn new(params: &GenerationParams, start: SearchStart) -> Self {
        let single = (1, 1, 1.0, EarlyStopping::Heuristic, false);
        let (num_beams, num_return_sequences, length_penalty, early_stopping, renormalize_logits) =
            match params.strategy {
                Strategy::Beams {
                    num_beams,
                    num_return_sequences,
                    length_penalty,
                    early_stopping,
                    renormalize_logits,
                } => (
                    num_beams,
                    num_return_sequences,
                    length_penalty,
                    early_stopping,
                    renormalize_logits,
                ),
                Strategy::Greedy | Strategy::Sample { .. } => single,
            };
        let beam = |score| Beam { tokens: Vec::new(), score, done: false };
        Self {
            processors: Processors::new(params, start.stop_token),
            num_beams,
            num_return_sequences,
            length_penalty,
            early_stopping,
            renormalize_logits,
            max_new_tokens: params.max_new_tokens,
            stop_token: start.stop_token,
            stop_strings: params.stop_strings.clone(),
            prompt: start.prompt,
            // In the first step, all beams are still equal, so they would choose the same tokens and stay identical.
            // Therefore, all beams except the first start with a very low score.
            running: (0..num_beams)
                .map(|index| beam(if index == 0 { 0.0 } else { UNLIKELY }))
                .collect(),
            finished: vec![beam(UNLIKELY); num_beams],
            improvable: true,
            generated: 0,
        }
    }

    pub(super) fn next_tokens(&self) -> Vec<u32> {
        self.running.iter().filter_map(|beam| beam.tokens.last()).map(|token| token.id).collect()
    }

    pub(super) fn wanted(&self) -> WantedScores {
        if self.processors.are_active() || self.renormalize_logits {
            WantedScores::All
        } else {
            WantedScores::Best(2 * self.num_beams)
        }
    }

    pub(super) fn advance(&mut self, scores: &[RowScores<'_>]) -> Result<Advance, BackendError> {
        let candidates = self.best_continuations(scores)?;
        let rows = scores.len();
        let parents = self.choose_running(&candidates, rows);
        self.generated += 1;
        let all_hit = candidates.iter().all(|candidate| candidate.hits_stop);
        let done = self.is_over(all_hit);
        let finished = done.then(|| self.sequences());
        let parents = if done { Vec::new() } else { parents };
        Ok(Advance { token: None, parents, generated: self.num_beams, finished })
    }

    /// Port of transformers' `_get_top_k_continuations`. Returns the `2 x num_beams` best continuations of all running
    /// beams, best first.
    fn best_continuations(&self, rows: &[RowScores<'_>]) -> Result<Vec<Candidate>, BackendError> {
        let keep = 2 * self.num_beams;
        let mut candidates = Vec::with_capacity(keep * self.num_beams);
        for (index, beam) in self.running.iter().enumerate() {
            // The prefill has one row, which all beams share.
            let best = match rows[index.min(rows.len() - 1)] {
                RowScores::All(logits) => self.continuations(beam, logits)?,
                RowScores::Best(best) => Self::continuations_of(beam, best, keep),
            };
            for (score, token) in best {
                let hits_stop = token.id == self.stop_token
                    || beam.tokens.len() + 1 >= self.max_new_tokens
                    || self.ends_in_stop_string(&beam.tokens, token.id);
                candidates.push(Candidate { score, beam: index, token, hits_stop });
            }
        }
        // The sort is stable, so that equal scores keep the order of beams and ids.
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(keep);
        Ok(candidates)
    }

    /// Returns the `2 x num_beams` best continuations of a beam with their scores, by the logits of the whole vocabulary.
    fn continuations(
        &self,
        beam: &Beam,
        logits: &[f32],
    ) -> Result<Vec<(f32, TokenLogprob)>, BackendError> {
        let raw = log_softmax(logits)?;
        let mut scores = raw.clone();
        self.processors.apply(&mut scores, &self.ids_of(beam), beam.tokens.len());
        if self.renormalize_logits {
            renormalize(&mut scores);
        }
        for score in &mut scores {
            *score += beam.score;
        }
        let token = |id: usize| TokenLogprob { id: id as u32, logprob: raw[id] };
        let best = top_indices(&scores, 2 * self.num_beams).into_iter();
        Ok(best.map(|id| (scores[id], token(id))).collect())
    }

    /// Returns the `count` best continuations of a beam with their scores, by the best tokens.
    fn continuations_of(beam: &Beam, best: &BestTokens, count: usize) -> Vec<(f32, TokenLogprob)> {
        let tokens = (0..best.len()).map(|index| best.token(index));
        let mut scored: Vec<_> = tokens.map(|token| (token.logprob + beam.score, token)).collect();
        // Adding the beam's score may make different scores equal.
        scored.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.id.cmp(&second.id)));
        scored.truncate(count);
        scored
    }

    /// Port of transformers' `_get_running_beams_for_next_iteration` and `_update_finished_beams`. Returns, for each
    /// new running beam, the row of the beam that it extends.
    fn choose_running(&mut self, candidates: &[Candidate], rows: usize) -> Vec<usize> {
        let beams: Vec<Beam> = candidates.iter().map(|candidate| self.extend(candidate)).collect();
        let scores: Vec<f32> = candidates
            .iter()
            .map(|candidate| candidate.score + if candidate.hits_stop { UNLIKELY } else { 0.0 })
            .collect();
        self.update_finished(candidates, &beams);
        let chosen = top_indices(&scores, self.num_beams);
        self.running = chosen
            .iter()
            .map(|&index| Beam { score: scores[index], ..beams[index].clone() })
            .collect();
        chosen.iter().map(|&index| candidates[index].beam.min(rows - 1)).collect()
    }

    fn update_finished(&mut self, candidates: &[Candidate], beams: &[Beam]) {
        let length = (self.generated + 1) as f32;
        let full = self.finished.iter().all(|beam| beam.done);
        let closed = (full && self.early_stopping == EarlyStopping::WhenFull, !self.improvable);
        let mut merged = self.finished.clone();
        for (rank, (candidate, beam)) in candidates.iter().zip(beams).enumerate() {
            let done = candidate.hits_stop && rank < self.num_beams;
            let mut score = candidate.score / length.powf(self.length_penalty);
            for impossible in [closed.0, closed.1, !done] {
                score += if impossible { UNLIKELY } else { 0.0 };
            }
            merged.push(Beam { score, done, ..beam.clone() });
        }
        // Best first; equal scores keep their order. A finished beam precedes every placeholder, even if an extreme
        // length penalty pushes its score below -1e9. In that case transformers returns the placeholder, an empty text.
        merged.sort_by(|a, b| b.done.cmp(&a.done).then(b.score.total_cmp(&a.score)));
        merged.truncate(self.num_beams);
        self.finished = merged;
    }

    /// Port of transformers' `_check_early_stop_heuristic` and `_beam_search_has_unfinished_sequences`. Returns true if
    /// the search is over. `self.generated` already includes this step.
    fn is_over(&mut self, all_hit: bool) -> bool {
        let length = match self.early_stopping {
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_new_tokens,
            EarlyStopping::Never | EarlyStopping::Heuristic | EarlyStopping::WhenFull => {
                self.generated
            }
        };
        let best_running = self.running[0].score / (length as f32).powf(self.length_penalty);
        let worst = self.finished.iter().map(|beam| beam.score).fold(f32::INFINITY, f32::min);
        let beats = |beam: &Beam| best_running > if beam.done { worst } else { UNLIKELY };
        self.improvable = self.improvable && self.finished.iter().any(beats);
        let full = self.finished.iter().all(|beam| beam.done);
        let open = !(full && self.early_stopping == EarlyStopping::WhenFull);
        !(self.improvable && open && !all_hit)
    }

    /// Returns the best finished beams. If an extreme length penalty ends the search before enough beams have finished,
    /// running beams replace the placeholders.
    fn sequences(&self) -> Vec<Sequence> {
        let finished = self.finished.iter().filter(|beam| beam.done);
        let returned = finished.chain(&self.running).take(self.num_return_sequences);
        returned
            .map(|beam| Sequence {
                tokens: beam.tokens.clone(),
                finish_reason: self.finish_reason(beam),
                attention: None,
            })
            .collect()
    }

    fn finish_reason(&self, beam: &Beam) -> FinishReason {
        match beam.tokens.split_last() {
            Some((last, _)) if last.id == self.stop_token => FinishReason::Stop,
            Some((last, before)) if self.ends_in_stop_string(before, last.id) => {
                FinishReason::StopString
            }
            Some(_) | None => FinishReason::Length,
        }
    }

    /// True if the token `last` completes a stop string of the text of prompt, `tokens` and `last`.
    fn ends_in_stop_string(&self, tokens: &[TokenLogprob], last: u32) -> bool {
        self.stop_strings.as_ref().is_some_and(|strings| {
            let new = tokens.iter().rev().map(|token| token.id);
            let prompt = self.prompt.iter().rev().copied();
            strings.end_the_text(std::iter::once(last).chain(new).chain(prompt))
        })
    }

    fn extend(&self, candidate: &Candidate) -> Beam {
        let mut tokens = self.running[candidate.beam].tokens.clone();
        tokens.push(candidate.token);
        Beam { tokens, score: candidate.score, done: false }
    }

    fn ids_of(&self, beam: &Beam) -> Vec<u32> {
        let new = beam.tokens.iter().map(|token| token.id);
        self.prompt.iter().copied().chain(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extreme_length_penalty_returns_finished_beams_and_no_placeholder() {
        for length_penalty in [-100.0, -30.0, -7.0, 100.0] {
            let strategy = Strategy::Beams {
                num_beams: 3,
                num_return_sequences: 3,
                length_penalty,
                early_stopping: EarlyStopping::Heuristic,
                renormalize_logits: false,
            };
            let params = GenerationParams { strategy, ..GenerationParams::greedy(12) };
            let start = SearchStart { prompt: vec![1], stop_token: 0, sequence: 0 };
            let mut search = BeamSearch::new(&params, start);
            let logits: Vec<f32> = (0..32).map(|id| (id * 7 % 32) as f32 / 8.0).collect();
            let mut rows = 1;
            let finished = loop {
                let advance = search.advance(&vec![RowScores::All(&logits); rows]).unwrap();
                rows = 3;
                if let Some(finished) = advance.finished {
                    break finished;
                }
            };
            assert_eq!(finished.len(), 3, "{length_penalty}");
            assert!(
                finished.iter().all(|sequence| !sequence.tokens.is_empty()),
                "{length_penalty}"
            );
        }
    }
}
