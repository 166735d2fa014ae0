//! Runs rows that need a single pass of one tower: questions, candidates, matching pairs and embeddings.
//!
//! Rows of the same kind run together. Rows with the same encoder states are made adjacent, so that each layer projects
//! these states to keys and values only once.

use crate::engine::backend::{BackendError, SinglePassOutput, SinglePassRow};
use crate::model::checkpoint::{Checkpoint, encode_texts};
use crate::model::group::EncoderStates;
use crate::model::ops::{Ops, RowRun};
use crate::model::text;
use crate::model::vision::VisionTower;
use crate::task::TokenIds;

type PassRow<O> = SinglePassRow<EncoderStates<O>>;
type PassOutput<O> = SinglePassOutput<EncoderStates<O>>;

/// A row whose text attends to encoder states. `place` is the index of the row in the backend call.
struct CrossAttendingRow<'a, O: Ops> {
    place: usize,
    memory: &'a EncoderStates<O>,
    text: &'a TokenIds,
}

/// Runs the rows. Returns one output per row, in order.
pub(super) fn run_single_pass<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    tower: &VisionTower<O>,
    rows: &[PassRow<O>],
) -> Result<Vec<PassOutput<O>>, BackendError> {
    let mut outputs: Vec<Option<PassOutput<O>>> = rows.iter().map(|_| None).collect();
    let mut attending = Vec::new();
    let mut candidates = Vec::new();
    let mut texts = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        match row {
            SinglePassRow::EncodeQuestion { image: memory, question: text }
            | SinglePassRow::MatchPair { image: memory, text }
            | SinglePassRow::EmbedMultimodal { image: memory, text } => {
                attending.push(CrossAttendingRow { place, memory, text });
            }
            SinglePassRow::ScoreCandidate { states: memory, candidate: text } => {
                candidates.push(CrossAttendingRow { place, memory, text });
            }
            SinglePassRow::EmbedText { text } => texts.push((place, text)),
            SinglePassRow::EmbedImage { image } => {
                let embedding = checkpoint.embed_image(ops, tower, image.states())?;
                outputs[place] = Some(SinglePassOutput::Embedding(embedding));
            }
        }
    }
    if !attending.is_empty() {
        run_text_encoder(ops, checkpoint, rows, attending, &mut outputs)?;
    }
    if !candidates.is_empty() {
        score_candidates(ops, checkpoint, candidates, &mut outputs)?;
    }
    if !texts.is_empty() {
        let tokens: Vec<&[u32]> = texts.iter().map(|(_, text)| text.as_slice()).collect();
        let encoded =
            encode_texts(ops, encoder(checkpoint)?, &tokens, &text::CrossAttention::Skip)?;
        for ((place, _), embedding) in
            texts.iter().zip(checkpoint.project_texts(ops, &encoded.class)?)
        {
            outputs[*place] = Some(SinglePassOutput::Embedding(embedding));
        }
    }
    Ok(outputs.into_iter().map(|output| output.expect("every kind of row was run")).collect())
}

/// Runs questions, matching pairs and multimodal embeddings through the text encoder, with cross-attention to image
/// features. Writes the results to `outputs`.
fn run_text_encoder<O: Ops>(
    ops: &O,
    checkpoint: &Checkpoint<O>,
    rows: &[PassRow<O>],
    attending: Vec<CrossAttendingRow<'_, O>>,
    outputs: &mut [Option<PassOutput<O>>],
) -> Result<(), BackendError> {
    let attending = adjacent_by_memory(attending);
    let texts: Vec<&[u32]> = attending.iter().map(|row| row.text.as_slice()).collect();
    let runs = runs(&attending, |row| row.text.len());
    let encoded =
        encode_texts(ops, encoder(checkpoint)?, &texts, &text::CrossAttention::Project(&runs))?;
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let mut pairs = Vec::new();
    let mut multimodal = Vec::new();
    for (index, (row, states)) in
        attending.iter().zip(ops.split_rows(&encoded.hidden, &lengths)?).enumerate()
    {
        match rows[row.place] {
            SinglePassRow::EncodeQuestion { .. } => {
                outputs[row.place] =
                    Some(SinglePassOutput::EncoderStates(EncoderStates::new(states)));
            }
            SinglePassRow::MatchPair { .. } => pairs.push((index, row.place)),
            SinglePassRow::EmbedMultimodal { .. } => multimodal.push((index, row.place)),
            SinglePassRow::ScoreCandidate { .. }
            | SinglePassRow::EmbedText { .. }
            | SinglePassRow::EmbedImage { .. } => {}
        }
    }
    if !pairs.is_empty() {
        let class = class_rows(ops, &encoded.class, &pairs)?;
        for ((_, place), logits) in pairs.iter().zip(checkpoint.match_logits(ops, &class)?) {
            outputs[*place] = Some(SinglePassOutput::MatchLogits(logits));
        }
    }
    if !multimodal.is_empty() {
        let class = class_rows(ops, &encoded.class, &multimodal)?;
        for ((_, place), embedding) in
            multimodal.iter().zip(checkpoint.project_multimodal(ops, &class)?)
        {
            outputs[*place] = Some(SinglePassOutput::Embedding(embedding));
        }
    }
    Ok(())
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

fn class_rows<O: Ops>(
    ops: &O,
    class: &O::Act,
    rows: &[(usize, usize)],
) -> Result<O::Act, BackendError> {
    let indices: Vec<usize> = rows.iter().map(|(index, _)| *index).collect();
    ops.select_rows(class, &indices)
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
