//! Runs rows that need a single pass of one tower: questions, candidates, matching pairs and embeddings.
//!
//! Rows of the same kind that run through the same layers run together. Rows with the same encoder states are made
//! adjacent, so that each layer projects these states to keys and values only once.

use std::collections::BTreeMap;

use crate::engine::backend::{BackendError, SinglePassOutput, SinglePassRow};
use crate::model::checkpoint::{Checkpoint, EncodedTexts, all, encode_texts, mean};
use crate::model::group::EncoderStates;
use crate::model::ops::{Ops, RowRun};
use crate::model::text;
use crate::model::vision::VisionTower;
use crate::task::{Embedding, Explain, Pooling, TokenIds};

type PassRow<O> = SinglePassRow<EncoderStates<O>>;
type PassOutput<O> = SinglePassOutput<EncoderStates<O>>;

/// Maximum number of tokens of a text that attends to an image in the form for few rows. The form saves the projections
/// of the image to keys and values (1.4 GFLOP for each layer of a base-size model), and each token costs 22 MFLOP more.
const FEW_TOKENS: usize = 24;

/// A row whose text attends to encoder states. `place` is the index of the row in the backend call.
struct CrossAttendingRow<'a, O: Ops> {
    place: usize,
    memory: &'a EncoderStates<O>,
    text: &'a TokenIds,
}

/// Runs the rows. `tower` is the model's vision tower. Returns one output per row, in order.
pub(super) fn run_single_pass<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    tower: Option<&VisionTower<O>>,
    rows: &[PassRow<O>],
) -> Result<Vec<PassOutput<O>>, BackendError> {
    let mut outputs: Vec<Option<PassOutput<O>>> = rows.iter().map(|_| None).collect();
    let mut attending: BTreeMap<(usize, bool), Vec<CrossAttendingRow<'_, O>>> = BTreeMap::new();
    let mut candidates = Vec::new();
    let mut texts: BTreeMap<usize, Vec<(usize, &TokenIds)>> = BTreeMap::new();
    for (place, row) in rows.iter().enumerate() {
        match row {
            SinglePassRow::EncodeQuestion { image: memory, question: text, .. }
            | SinglePassRow::MatchPair { image: memory, text, .. }
            | SinglePassRow::EmbedMultimodal { image: memory, text, .. } => {
                let layers = (depth(checkpoint, row)?, has_few_rows(checkpoint, row)?);
                let attending = attending.entry(layers).or_default();
                attending.push(CrossAttendingRow { place, memory, text });
            }
            SinglePassRow::ScoreCandidate { states: memory, candidate: text } => {
                candidates.push(CrossAttendingRow { place, memory, text });
            }
            SinglePassRow::EmbedText { text, .. } => {
                texts.entry(depth(checkpoint, row)?).or_default().push((place, text));
            }
            SinglePassRow::EmbedImage { image, pooling } => {
                let missing =
                    || BackendError::Device("this model class has no vision tower".to_owned());
                let tower = tower.ok_or_else(missing)?;
                let embedding = checkpoint.embed_image(ops, tower, image.states(), *pooling)?;
                outputs[place] = Some(SinglePassOutput::Embedding(embedding));
            }
        }
    }
    for ((depth, has_few_rows), attending) in attending {
        let layers = Layers { depth, has_few_rows };
        run_attending_texts(ops, checkpoint, rows, attending, layers, &mut outputs)?;
    }
    if !candidates.is_empty() {
        score_candidates(ops, checkpoint, candidates, &mut outputs)?;
    }
    for (depth, texts) in texts {
        let (places, texts): (Vec<usize>, Vec<&[u32]>) =
            texts.into_iter().map(|(place, text)| (place, text.as_slice())).unzip();
        let cross = text::CrossAttention::Skip;
        let encoded = encode_texts(ops, encoder(checkpoint)?, &texts, &cross, depth, &mut [])?;
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let states = LazyStates::new(ops, &encoded, &lengths);
        finish(ops, checkpoint, rows, &places, states, &mut outputs)?;
    }
    Ok(outputs.into_iter().map(|output| output.expect("every kind of row was run")).collect())
}

/// Returns the number of layers that a text row runs through.
fn depth<O: Ops>(checkpoint: &Checkpoint<O>, row: &PassRow<O>) -> Result<usize, BackendError> {
    let all = encoder(checkpoint)?.depth();
    let layer = match row {
        SinglePassRow::EmbedText { output, .. } | SinglePassRow::EmbedMultimodal { output, .. } => {
            output.layer.map(usize::from)
        }
        SinglePassRow::EncodeQuestion { .. }
        | SinglePassRow::MatchPair { .. }
        | SinglePassRow::ScoreCandidate { .. }
        | SinglePassRow::EmbedImage { .. } => None,
    };
    Ok(layer.unwrap_or(all).min(all))
}

/// True if the row attends to its image in the form for few rows. This depends only on the row, so the bits of its result
/// do not depend on its batch neighbours.
fn has_few_rows<O: Ops>(
    checkpoint: &Checkpoint<O>,
    row: &PassRow<O>,
) -> Result<bool, BackendError> {
    let is_only_text = match row {
        SinglePassRow::EncodeQuestion { is_only_text, .. }
        | SinglePassRow::MatchPair { is_only_text, .. } => *is_only_text,
        SinglePassRow::EmbedMultimodal { .. } => true,
        SinglePassRow::ScoreCandidate { .. }
        | SinglePassRow::EmbedImage { .. }
        | SinglePassRow::EmbedText { .. } => false,
    };
    Ok(is_only_text && row.tokens() <= FEW_TOKENS && encoder(checkpoint)?.has_few_row_form())
}

/// The layers that texts run through: the first `depth` of the encoder, with cross-attention in the form for few rows
/// or with projected keys and values.
#[derive(Debug, Clone, Copy)]
struct Layers {
    depth: usize,
    has_few_rows: bool,
}

/// Runs questions, matching pairs and multimodal embeddings through the layers of the text encoder, with cross-attention
/// to image features. Writes the results to `outputs`.
fn run_attending_texts<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    rows: &[PassRow<O>],
    attending: Vec<CrossAttendingRow<'_, O>>,
    Layers { depth, has_few_rows }: Layers,
    outputs: &mut [Option<PassOutput<O>>],
) -> Result<(), BackendError> {
    let attending = adjacent_by_memory(attending);
    let places: Vec<usize> = attending.iter().map(|row| row.place).collect();
    let texts: Vec<&[u32]> = attending.iter().map(|row| row.text.as_slice()).collect();
    let runs = runs(&attending, |row| row.text.len());
    let mut explained = explained_rows(rows, &attending);
    let encoder = encoder(checkpoint)?;
    let few_row_memories = if has_few_rows {
        let memories = runs.iter().map(|run| encoder.few_row_keys_values(ops, run.memory));
        memories.collect::<Result<Vec<_>, _>>()?
    } else {
        Vec::new()
    };
    let few_row_runs: Vec<_> = few_row_memories
        .iter()
        .zip(&runs)
        .map(|(memory, run)| RowRun { memory: memory.as_slice(), rows: run.rows })
        .collect();
    let cross = if has_few_rows {
        text::CrossAttention::Cached(&few_row_runs)
    } else {
        text::CrossAttention::Project(&runs)
    };
    let encoded = encode_texts(ops, encoder, &texts, &cross, depth, &mut explained)?;
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let states = LazyStates::new(ops, &encoded, &lengths);
    finish(ops, checkpoint, rows, &places, states, outputs)?;
    let mut explained = explained.into_iter();
    for place in places {
        if explain(&rows[place]).is_some()
            && let Some(SinglePassOutput::EncoderStates { attention, .. }) = &mut outputs[place]
        {
            *attention = explained.next().map(|rows| rows.into_patch_weights().collect());
        }
    }
    Ok(())
}

fn explain<M>(row: &SinglePassRow<M>) -> Option<&Explain> {
    if let SinglePassRow::EncodeQuestion { explain, .. } = row { explain.as_ref() } else { None }
}

/// Returns the tokens of each question that is explained, in order.
fn explained_rows<'a, O: Ops>(
    rows: &'a [PassRow<O>],
    attending: &[CrossAttendingRow<'a, O>],
) -> Vec<text::Explained<'a, O>> {
    let mut first = 0;
    let mut explained = Vec::new();
    for row in attending {
        let tokens = first..first + row.text.len();
        first = tokens.end;
        if let Some(Explain(layers)) = explain(&rows[row.place]) {
            let (rows, memory) = (tokens.collect(), row.memory.states());
            explained.push(text::Explained { rows, memory, layers, weights: Vec::new() });
        }
    }
    explained
}

/// The hidden states of encoded texts, split by text when a row first needs the states of all its tokens.
struct LazyStates<'a, O: Ops> {
    ops: &'a O,
    encoded: &'a EncodedTexts<O>,
    lengths: &'a [usize],
    split: Option<Vec<O::Act>>,
}

impl<'a, O: Ops> LazyStates<'a, O> {
    fn new(ops: &'a O, encoded: &'a EncodedTexts<O>, lengths: &'a [usize]) -> Self {
        Self { ops, encoded, lengths, split: None }
    }

    /// Returns the states of all tokens of a text.
    fn of(&mut self, index: usize) -> Result<O::Act, BackendError> {
        if self.split.is_none() {
            self.split = Some(self.ops.split_rows(&self.encoded.hidden, self.lengths)?);
        }
        Ok(self.split.as_ref().expect("it was just set")[index].clone())
    }
}

/// Computes the outputs of encoded rows from their hidden states. `places[i]` is the index of the row that belongs to text
/// i. Writes the results to `outputs`.
fn finish<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    rows: &[PassRow<O>],
    places: &[usize],
    mut states: LazyStates<'_, O>,
    outputs: &mut [Option<PassOutput<O>>],
) -> Result<(), BackendError> {
    let mut heads: BTreeMap<Head, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, &place) in places.iter().enumerate() {
        let mut set = |output| outputs[place] = Some(output);
        match head(&rows[place]) {
            Some(head) => heads.entry(head).or_default().push((index, place)),
            None => match pooling(&rows[place]) {
                None => {
                    let states = EncoderStates::new(states.of(index)?);
                    set(SinglePassOutput::EncoderStates { states, attention: None });
                }
                Some(Pooling::Mean) => {
                    set(SinglePassOutput::Embedding(mean(&ops.to_host(&states.of(index)?)?)));
                }
                Some(_) => set(SinglePassOutput::Embedding(all(ops.to_host(&states.of(index)?)?))),
            },
        }
    }
    for (head, rows) in heads {
        let indices: Vec<usize> = rows.iter().map(|(index, _)| *index).collect();
        let class = ops.select_rows(&states.encoded.class, &indices)?;
        let computed: Vec<PassOutput<O>> = match head {
            Head::Match => {
                let logits = checkpoint.match_logits(ops, &class)?;
                logits.into_iter().map(SinglePassOutput::MatchLogits).collect()
            }
            Head::Class => {
                let rows = ops.to_host(&class)?.into_iter();
                rows.map(|row| SinglePassOutput::Embedding(Embedding::new(row))).collect()
            }
            Head::Pooler => embedded(checkpoint.pool_texts(ops, &class)?),
            Head::Text => embedded(checkpoint.project_texts(ops, &class)?),
            Head::Multimodal => embedded(checkpoint.project_multimodal(ops, &class)?),
        };
        for ((_, place), output) in rows.into_iter().zip(computed) {
            outputs[place] = Some(output);
        }
    }
    Ok(())
}

fn embedded<O: Ops>(embeddings: Vec<Embedding>) -> Vec<PassOutput<O>> {
    embeddings.into_iter().map(SinglePassOutput::Embedding).collect()
}

/// What is computed from the `[CLS]` state of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Head {
    /// The matching head.
    Match,
    /// Nothing: the state itself.
    Class,
    /// The pooler.
    Pooler,
    /// The projection of a text.
    Text,
    /// The projection of a text with its image.
    Multimodal,
}

/// Returns what is computed from the row's `[CLS]` state; `None` if the row needs the states of all tokens.
fn head<M>(row: &SinglePassRow<M>) -> Option<Head> {
    match (row, pooling(row)?) {
        (SinglePassRow::MatchPair { .. }, _) => Some(Head::Match),
        (SinglePassRow::EmbedText { .. }, Pooling::Projection) => Some(Head::Text),
        (_, Pooling::Projection) => Some(Head::Multimodal),
        (_, Pooling::Cls) => Some(Head::Class),
        (_, Pooling::Pooler) => Some(Head::Pooler),
        (_, Pooling::Mean | Pooling::None) => None,
    }
}

/// Returns how the states of the row's text become its output; `None` if all of them are the output.
fn pooling<M>(row: &SinglePassRow<M>) -> Option<Pooling> {
    match row {
        SinglePassRow::EmbedText { output, .. } | SinglePassRow::EmbedMultimodal { output, .. } => {
            Some(output.pooling)
        }
        SinglePassRow::MatchPair { .. } => Some(Pooling::Cls),
        SinglePassRow::EmbedImage { pooling, .. } => Some(*pooling),
        SinglePassRow::EncodeQuestion { .. } | SinglePassRow::ScoreCandidate { .. } => None,
    }
}

/// Scores candidates: runs the decoder with cross-attention to the image's features or the question's states. Writes
/// the results to `outputs`.
fn score_candidates<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    candidates: Vec<CrossAttendingRow<'_, O>>,
    outputs: &mut [Option<PassOutput<O>>],
) -> Result<(), BackendError> {
    let decoder = checkpoint
        .decoder()
        .ok_or_else(|| BackendError::Device("this model class has no decoder".to_owned()))?;
    let candidates = adjacent_by_memory(candidates);
    let texts: Vec<&[u32]> = candidates.iter().map(|row| row.text.as_slice()).collect();
    let scores = decoder.score(ops, &texts, &runs(&candidates, |_| 1))?;
    for (row, score) in candidates.iter().zip(scores) {
        outputs[row.place] = Some(SinglePassOutput::Scored(score));
    }
    Ok(())
}

fn encoder<O: Ops>(checkpoint: &Checkpoint<O>) -> Result<&text::TextTower<O>, BackendError> {
    let missing = || BackendError::Device("this model class has no text encoder".to_owned());
    checkpoint.encoder().ok_or_else(missing)
}

/// Returns the rows, sorted so that rows with the same encoder states are adjacent. The encoder states come in the
/// order in which they first occur, and rows with the same encoder states keep their order.
fn adjacent_by_memory<O: Ops>(
    mut rows: Vec<CrossAttendingRow<'_, O>>,
) -> Vec<CrossAttendingRow<'_, O>> {
    let mut memories: Vec<&EncoderStates<O>> = Vec::new();
    let mut order: Vec<usize> = Vec::with_capacity(rows.len());
    for row in &rows {
        let known = memories.iter().position(|memory| memory.is(row.memory));
        order.push(known.unwrap_or_else(|| {
            memories.push(row.memory);
            memories.len() - 1
        }));
    }
    let mut keyed: Vec<_> = order.into_iter().zip(rows.drain(..)).collect();
    keyed.sort_by_key(|(memory, _)| *memory);
    keyed.into_iter().map(|(_, row)| row).collect()
}

/// Merges adjacent rows with the same encoder states into one run. The length of a run is the sum of `size` over its
/// rows.
fn runs<'a, O: Ops>(
    rows: &[CrossAttendingRow<'a, O>],
    size: impl Fn(&CrossAttendingRow<'a, O>) -> usize,
) -> Vec<RowRun<&'a O::Act>> {
    let mut runs: Vec<RowRun<&'a O::Act>> = Vec::new();
    for row in rows {
        let states = row.memory.states();
        match runs.last_mut() {
            Some(last) if std::ptr::eq(last.memory, states) => last.rows += size(row),
            _ => runs.push(RowRun { memory: states, rows: size(row) }),
        }
    }
    runs
}
