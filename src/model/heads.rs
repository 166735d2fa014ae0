//! The LM head, and the decoder, which is a text tower with an LM head. `checkpoint` has the other heads.

use super::config::TextConfig;
use super::error::LoadError;
use super::load::{Loader, Scope};
use super::ops::{Activation, Epilogue, Ops, RowRun};
use super::search::log_softmax;
use super::text::{CrossAttention, CrossAttentionWidth, NewTokens, SelfAttention, TextTower};
use crate::engine::backend::BackendError;
use crate::task::{ScoredText, TokenLogprob};

/// Maximum number of rows whose logits are computed at the same time while candidates are scored. These logits take
/// 64 x 30,524 x 4 B = 8 MB.
const SCORED_ROWS: usize = 64;

/// LM head, which computes logits from hidden states. Source: transformers `BlipTextLMPredictionHead`.
#[derive(Debug)]
struct LmHead<O: Ops> {
    transform: O::Linear,
    activation: Activation,
    transform_norm: O::LayerNorm,
    output: O::Linear,
}

/// A text tower with an LM head, which generates text.
#[derive(Debug)]
pub(super) struct TextDecoder<O: Ops> {
    pub(super) tower: TextTower<O>,
    head: LmHead<O>,
    /// First token of every sequence.
    pub(super) bos: u32,
    /// Token that ends a sequence.
    pub(super) stop: u32,
}

impl<O: Ops> TextDecoder<O> {
    /// Loads a decoder from the tensors under `text_decoder`.
    pub(super) fn load(
        loader: &Loader<'_, O>,
        config: &TextConfig,
        memory: CrossAttentionWidth,
    ) -> Result<Self, LoadError> {
        let scope = Scope::new("text_decoder").child("cls.predictions.transform");
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let head = LmHead {
            transform: loader.linear(&scope.child("dense"), width, width)?,
            activation: config.activation(),
            transform_norm: loader.layer_norm(&scope.child("LayerNorm"), width, eps)?,
            output: loader.lm_output(config)?,
        };
        let tower = TextTower::load(loader, config, "text_decoder.bert", Some(memory))?;
        loader.reserve_kv_caches(width)?;
        Ok(Self { tower, head, bos: config.bos_token_id, stop: config.sep_token_id })
    }

    /// Computes the logits `[rows, vocabulary]` of these hidden states.
    pub(super) fn logits(&self, ops: &O, hidden: &O::Act) -> Result<O::Act, BackendError> {
        let x =
            ops.linear(hidden, &self.head.transform, Epilogue::Activation(self.head.activation))?;
        let x = ops.layer_norm(&x, &self.head.transform_norm)?;
        ops.linear(&x, &self.head.output, Epilogue::None)
    }

    /// Returns the tokens that a sequence starts with: the start token, then the prompt without `[CLS]` and `[SEP]`.
    /// transformers instead cuts off the last *column* of a padded batch. This is meant to remove `[SEP]`, but in a
    /// padded batch only the longest rows have `[SEP]` in that column.
    pub(super) fn start(&self, prompt: Option<&[u32]>) -> Vec<u32> {
        let prompt = prompt.unwrap_or_default();
        let middle = if prompt.len() > 2 { &prompt[1..prompt.len() - 1] } else { &[] };
        std::iter::once(self.bos).chain(middle.iter().copied()).collect()
    }

    /// Returns for each candidate (`[CLS] candidate [SEP]`) the log-probabilities of its tokens and of `[SEP]`, given the
    /// start token and what precedes them: the terms of the loss that the reference computes for
    /// `forward(input_ids=ids, labels=ids)`, where the first of `ids` is the start token. Each run in `runs` stands for consecutive candidates with the same encoder
    /// states; its `rows` is the number of these candidates.
    pub(super) fn score(
        &self,
        ops: &O,
        candidates: &[&[u32]],
        runs: &[RowRun<&O::Act>],
    ) -> Result<Vec<ScoredText>, BackendError> {
        let inputs: Vec<Vec<u32>> =
            candidates.iter().map(|candidate| self.start(Some(candidate))).collect();
        let sequences: Vec<NewTokens<'_>> =
            inputs.iter().map(|tokens| NewTokens { tokens, position: 0 }).collect();
        // The runs built here count tokens in `rows`, whereas those passed to this function count candidates.
        let mut start = 0;
        let runs: Vec<_> = runs
            .iter()
            .map(|run| {
                let tokens = inputs[start..start + run.rows].iter().map(Vec::len).sum();
                start += run.rows;
                RowRun { memory: run.memory, rows: tokens }
            })
            .collect();
        let caches = vec![None; inputs.len()];
        let output = self.tower.forward(
            ops,
            &sequences,
            &SelfAttention::Causal(&caches),
            &CrossAttention::Project(&runs),
        )?;
        let targets: Vec<(usize, u32)> = candidates
            .iter()
            .enumerate()
            .flat_map(|(index, candidate)| candidate[1..].iter().map(move |&token| (index, token)))
            .collect();
        let mut scored: Vec<ScoredText> = candidates
            .iter()
            .map(|candidate| ScoredText { tokens: Vec::with_capacity(candidate.len() - 1) })
            .collect();
        let rows: Vec<usize> = (0..targets.len()).collect();
        for (rows, targets) in rows.chunks(SCORED_ROWS).zip(targets.chunks(SCORED_ROWS)) {
            let logits = self.logits(ops, &ops.select_rows(&output.hidden, rows)?)?;
            for (row, (index, token)) in ops.host_rows(&logits)?.iter().zip(targets) {
                let logprob = log_softmax(row)?[*token as usize];
                scored[*index].tokens.push(TokenLogprob { id: *token, logprob });
            }
        }
        Ok(scored)
    }
}
