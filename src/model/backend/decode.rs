//! One decode step over a ragged batch: the new tokens of all groups run through the decoder together, then each
//! group's search advances.
//!
//! A group is changed only after the whole step has succeeded. If the step fails, the caller may therefore split the
//! batch and run each half again.

use std::sync::Arc;

use super::scores::StepScores;
use crate::engine::backend::{BackendError, StepEvent};
use crate::model::group::{CrossKvCache, Group, LiveRow, StepInput};
use crate::model::heads::TextDecoder;
use crate::model::ops::{Ops, PassKey, RowRun};
use crate::model::search::{Advance, RowScores, Search, WantedScores};
use crate::model::text::{CrossAttention, Explained, NewTokens, SelfAttention};
use crate::task::{Explain, ModelId, PatchWeights};

/// Result of a step for one group, before it is written to the group.
struct GroupStep<O: Ops> {
    search: Search,
    rows: Vec<LiveRow<O>>,
    advance: Advance,
    /// Attention weights of the new token, if the group is explained.
    weights: Option<PatchWeights>,
}

/// Advances every group by one step. Returns one event per group, in order.
pub(super) fn step<O: Ops>(
    ops: &O,
    model: ModelId,
    decoder: &TextDecoder<O>,
    groups: &mut [&mut Group<O>],
) -> Result<Vec<StepEvent>, BackendError> {
    let cross = cross_keys_values(ops, model, decoder, groups)?;
    let outcomes = {
        let groups: Vec<&Group<O>> = groups.iter().map(|group| &**group).collect();
        run(ops, decoder, &groups, &cross)?
    };
    let commit = |group: &mut Group<O>, cross, outcome: GroupStep<O>| {
        group.cross = Some(cross);
        group.rows = outcome.rows;
        group.search = outcome.search;
        let Advance { token, generated, mut finished, .. } = outcome.advance;
        if let (Some((_, tokens)), Some(weights)) = (&mut group.explained, outcome.weights) {
            tokens.push(weights);
            if let Some([sequence]) = finished.as_deref_mut() {
                sequence.attention = Some(std::mem::take(tokens));
            }
        }
        StepEvent { token, generated, finished }
    };
    let commits = groups.iter_mut().zip(cross).zip(outcomes);
    Ok(commits.map(|((group, cross), outcome)| commit(group, cross, outcome)).collect())
}

/// Returns each group's cross-attention keys and values. Groups with the same encoder states share one copy.
fn cross_keys_values<O: Ops>(
    ops: &O,
    model: ModelId,
    decoder: &TextDecoder<O>,
    groups: &[&mut Group<O>],
) -> Result<Vec<Arc<CrossKvCache<O>>>, BackendError> {
    let of_group = |group: &&mut Group<O>| match &group.cross {
        Some(cross) => Ok(Arc::clone(cross)),
        None => {
            group.memory.cross_keys_values(model, |states| decoder.tower.keys_values(ops, states))
        }
    };
    groups.iter().map(of_group).collect()
}

fn run<O: Ops>(
    ops: &O,
    decoder: &TextDecoder<O>,
    groups: &[&Group<O>],
    cross: &[Arc<CrossKvCache<O>>],
) -> Result<Vec<GroupStep<O>>, BackendError> {
    let order = adjacent_by_memory(cross);
    let inputs: Vec<Vec<StepInput<'_, O>>> = groups.iter().map(|group| group.inputs()).collect();
    let ordered = || order.iter().flat_map(|&group| inputs[group].iter());
    let sequences: Vec<NewTokens<'_>> = ordered()
        .map(|input| NewTokens { tokens: &input.tokens, position: input.position })
        .collect();
    let caches: Vec<_> = ordered().map(|input| input.caches).collect();
    let runs: Vec<_> = order
        .iter()
        .map(|&group| {
            let rows = inputs[group].iter().map(|input| input.tokens.len()).sum();
            RowRun { memory: cross[group].as_slice(), rows }
        })
        .collect();
    let runs = merged(&runs);
    let mut end = 0;
    let lasts: Vec<usize> = sequences
        .iter()
        .map(|sequence| {
            end += sequence.tokens.len();
            end - 1
        })
        .collect();
    let mut explained = explained_rows(groups, &order, &inputs, &lasts);
    let is_uniform = explained.is_empty() && sequences.iter().all(|new| new.tokens.len() == 1);
    let mut pass = || {
        let output = decoder.tower.forward_to(
            ops,
            &sequences,
            &SelfAttention::Causal(&caches),
            &CrossAttention::Cached(&runs),
            decoder.tower.depth(),
            &mut explained,
        )?;
        let logits = decoder.logits(ops, &ops.select_rows(&output.hidden, &lasts)?)?;
        Ok((logits, output.caches))
    };
    let (logits, caches) = if is_uniform {
        let decoder = std::ptr::from_ref(decoder).addr();
        ops.pass(PassKey::Decode { decoder, rows: sequences.len() }, pass)?
    } else {
        pass()?
    };
    let wanted: Vec<WantedScores> = order
        .iter()
        .flat_map(|&group| inputs[group].iter().map(move |_| groups[group].search.wanted()))
        .collect();
    let scores = StepScores::read(ops, &logits, &wanted)?;
    let (mut scores, mut caches) = (scores.rows().into_iter(), caches.into_iter());
    let mut explained = explained.into_iter().peekable();
    let mut outcomes: Vec<Option<GroupStep<O>>> = groups.iter().map(|_| None).collect();
    for &group in &order {
        let inputs = &inputs[group];
        let scores: Vec<RowScores<'_>> = scores.by_ref().take(inputs.len()).collect();
        let rows: Vec<LiveRow<O>> = inputs
            .iter()
            .zip(caches.by_ref())
            .map(|(input, caches)| LiveRow { caches, length: input.position + input.tokens.len() })
            .collect();
        let mut search = groups[group].search.clone();
        let advance = search.advance(&scores)?;
        let rows = advance.parents.iter().map(|&parent| rows[parent].clone()).collect();
        let is_explained = groups[group].explained.is_some();
        let weights = explained
            .next_if(|_| is_explained)
            .and_then(|explained| explained.into_patch_weights().next());
        outcomes[group] = Some(GroupStep { search, rows, advance, weights });
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.expect("the order names every group")).collect())
}

/// Returns the last row of each explained group, in the order of the groups in this step. An explained group has one row.
fn explained_rows<'a, O: Ops>(
    groups: &[&'a Group<O>],
    order: &[usize],
    inputs: &[Vec<StepInput<'_, O>>],
    lasts: &[usize],
) -> Vec<Explained<'a, O>> {
    let mut rows = lasts.iter();
    let mut explained = Vec::new();
    for &group in order {
        let last = rows.by_ref().take(inputs[group].len()).last();
        if let (Some((Explain(layers), _)), Some(&last)) = (&groups[group].explained, last) {
            let memory = groups[group].memory.states();
            explained.push(Explained { rows: vec![last], memory, layers, weights: Vec::new() });
        }
    }
    explained
}

/// Returns the indices of the groups, sorted so that groups with the same encoder states are adjacent. The encoder
/// states come in the order in which they first occur, and groups with the same encoder states keep their order.
fn adjacent_by_memory<T>(cross: &[Arc<T>]) -> Vec<usize> {
    let first_of = |index: usize| {
        cross.iter().position(|other| Arc::ptr_eq(other, &cross[index])).unwrap_or(index)
    };
    let mut order: Vec<usize> = (0..cross.len()).collect();
    order.sort_by_key(|&index| first_of(index));
    order
}

/// Merges adjacent runs that attend to the same keys and values, so that the keys and values are read only once.
fn merged<'a, T>(runs: &[RowRun<&'a [T]>]) -> Vec<RowRun<&'a [T]>> {
    let mut merged: Vec<RowRun<&'a [T]>> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if std::ptr::eq(last.memory, run.memory) => last.rows += run.rows,
            _ => merged.push(*run),
        }
    }
    merged
}
