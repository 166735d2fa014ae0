//! Tests that a result does not depend on the batch neighbours, that models share identical vision towers, and that the
//! groups of an image share its cross-attention keys and values.

use std::sync::Arc;

use super::{Reference, TestedOps, assert_close, generation, load, tokens, skipped};
use crate::engine::backend::{Backend, GroupSpec, SinglePassOutput, SinglePassRow};
use crate::model::group::{EncoderStates, Group};
use crate::model::ops::Ops;
use crate::task::{
    Cutoffs, EarlyStopping, ExponentialDecay, FinishReason, GenerationParams, ModelId, StopStrings,
    Strategy, TokenTexts, TowerId, VisionOutput,
};

/// Maximum relative difference between the f32 results of a row alone and of the same row in a batch. It allows only
/// for rounding.
const BATCH_TOLERANCE: f32 = 1e-5;

#[test]
fn models_with_identical_vision_weights_share_one_tower() {
    if skipped() {
        return;
    }
    let backend = load(&["caption-varied", "retrieval", "caption-talkative"]);
    let towers: Vec<TowerId> = backend.models().iter().map(|info| info.vision_tower().tower).collect();
    assert_eq!(towers, [TowerId(0), TowerId(0), TowerId(1)]);
}

#[test]
fn a_batch_of_images_gives_each_image_its_lone_features() {
    if skipped() {
        return;
    }
    let (mut backend, reference) = (load(&["retrieval"]), Reference::read("retrieval"));
    let photos = reference.names("vision");
    let pixels: Vec<_> = photos.iter().map(|photo| reference.pixels(photo)).collect();
    let together = backend.encode(VisionOutput::last(TowerId(0)), &pixels.iter().collect::<Vec<_>>()).unwrap();
    for ((photo, pixels), together) in photos.iter().zip(&pixels).zip(together) {
        let alone = backend.encode(VisionOutput::last(TowerId(0)), &[pixels]).unwrap().remove(0);
        let flat = |memory: &EncoderStates<TestedOps>| -> Vec<f32> {
            backend.ops.to_host(memory.states()).unwrap().concat()
        };
        assert_close(photo, &flat(&together), &flat(&alone), BATCH_TOLERANCE);
    }
}

#[test]
fn pairs_of_several_images_in_one_call_keep_their_probabilities() {
    if skipped() {
        return;
    }
    let (mut backend, reference) = (load(&["retrieval"]), Reference::read("retrieval"));
    let photos = reference.names("vision");
    let images: Vec<_> = photos
        .iter()
        .map(|photo| backend.encode(VisionOutput::last(TowerId(0)), &[&reference.pixels(photo)]).unwrap().remove(0))
        .collect();
    let mut rows = Vec::new();
    // The outer loop is over texts and the inner loop over images, so that adjacent rows of the backend call have
    // different encoder states.
    for text in reference.list("texts") {
        for image in &images {
            for is_only_text in [false, true] {
                let text = tokens(&text["ids"]);
                rows.push(SinglePassRow::MatchPair { image: image.clone(), text, is_only_text });
            }
        }
    }
    let number = |output: SinglePassOutput<_>| match output {
        SinglePassOutput::MatchLogits(logits) => logits.is_match,
        other => panic!("{other:?}"),
    };
    let together: Vec<f32> =
        backend.run_single_pass(ModelId(0), &rows).unwrap().into_iter().map(number).collect();
    let alone: Vec<f32> = rows
        .iter()
        .map(|row| number(backend.run_single_pass(ModelId(0), std::slice::from_ref(row)).unwrap().remove(0)))
        .collect();
    assert_close("pairs", &together, &alone, BATCH_TOLERANCE);
}

#[test]
fn keys_and_values_of_an_image_are_shared_by_its_groups_and_freed_with_the_last() {
    if skipped() {
        return;
    }
    let (mut backend, reference) =
        (load(&["caption-talkative"]), Reference::read("caption-talkative"));
    let case = &reference.list("generation")[0];
    let memory = generation::memory(&mut backend, &reference, case);
    let mut first = generation::open(&mut backend, &reference, case, memory.clone());
    let mut second = generation::open(&mut backend, &reference, case, memory);
    backend.step(ModelId(0), &mut [&mut first]).unwrap();
    backend.step(ModelId(0), &mut [&mut second]).unwrap();
    let held = first.cross.as_ref().unwrap();
    assert!(std::sync::Arc::ptr_eq(held, second.cross.as_ref().unwrap()));
    let watch = std::sync::Arc::downgrade(held);
    drop(first);
    assert!(watch.upgrade().is_some());
    drop(second);
    assert!(watch.upgrade().is_none());
}

/// Parameters of every strategy with words, stop strings and cutoffs. `known` is the greedy text without them, so that
/// they change it.
fn parameters_with_words(known: &[u32]) -> Vec<GenerationParams> {
    let texts: TokenTexts = (0..2000).map(|id| format!(" <{id}>")).collect();
    let texts = Arc::new(texts);
    let stop_at = |id: u32| {
        let strings: [Arc<str>; 2] = ["<none>".into(), format!("{id}>").into()];
        Some(StopStrings::new(strings.into(), Arc::clone(&texts)))
    };
    let words: Arc<[Box<[u32]>]> = [known[1..2].into(), known[3..5].into()].into();
    let decay = Some(ExponentialDecay { start: 2, factor: 1.1 });
    let greedy = || GenerationParams::greedy(12);
    let beams = Strategy::Beams {
        num_beams: 3,
        num_return_sequences: 3,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
        renormalize_logits: true,
    };
    let sample = Strategy::Sample {
        seed: 3,
        num_return_sequences: 1,
        temperature: 1.0,
        top_k: 50,
        top_p: 1.0,
        cutoffs: Cutoffs { min_p: 0.01, typical_p: 0.95, epsilon_cutoff: 1e-3, eta_cutoff: 1e-3 },
    };
    vec![
        GenerationParams { bad_words: Some(Arc::clone(&words)), ..greedy() },
        GenerationParams { stop_strings: stop_at(known[4]), ..greedy() },
        GenerationParams { exponential_decay_length_penalty: decay, ..greedy() },
        GenerationParams {
            bad_words: Some(Arc::clone(&words)),
            stop_strings: stop_at(known[2]),
            strategy: beams,
            ..greedy()
        },
        GenerationParams {
            bad_words: Some(words),
            exponential_decay_length_penalty: decay,
            strategy: sample,
            ..greedy()
        },
        greedy(),
    ]
}

#[test]
fn rows_with_words_stop_strings_and_cutoffs_keep_their_lone_texts() {
    if skipped() {
        return;
    }
    let (mut backend, reference) =
        (load(&["caption-talkative"]), Reference::read("caption-talkative"));
    let case = &reference.list("generation")[0];
    let memory = generation::memory(&mut backend, &reference, case);
    let open = |backend: &mut super::Tested, params: &GenerationParams| {
        let (states, params) = (memory.clone(), params.clone());
        backend.open(GroupSpec { model: ModelId(0), states, prompt: None, params, sequence: 0, explain: None })
    };
    let plain = open(&mut backend, &GenerationParams::greedy(12));
    let plain = generation::run_alone(&mut backend, plain).remove(0);
    let all = parameters_with_words(&plain.text_ids());
    let mut alone = Vec::new();
    for params in &all {
        let group = open(&mut backend, params);
        alone.push(generation::run_alone(&mut backend, group));
    }
    assert_eq!(alone[1][0].finish_reason, FinishReason::StopString);
    assert_eq!(alone[1][0].text_ids(), plain.text_ids()[..5]);
    assert!(alone[..5].iter().all(|sequences| sequences[0] != plain), "each parameter matters");

    let mut groups: Vec<(usize, Group<TestedOps>)> = Vec::new();
    for (index, params) in all.iter().enumerate() {
        groups.push((index, open(&mut backend, params)));
    }
    while !groups.is_empty() {
        let mut running: Vec<_> = groups.iter_mut().map(|(_, group)| group).collect();
        let mut events = backend.step(ModelId(0), &mut running).unwrap().into_iter();
        groups.retain(|(index, _)| {
            let Some(together) = events.next().and_then(|event| event.finished) else {
                return true;
            };
            assert_eq!(together.len(), alone[*index].len());
            for (together, alone) in together.iter().zip(&alone[*index]) {
                assert_eq!(together.text_ids(), alone.text_ids(), "parameters {index}");
                assert_eq!(together.finish_reason, alone.finish_reason, "parameters {index}");
            }
            false
        });
    }
}
