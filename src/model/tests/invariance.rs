//! Tests that a result does not depend on the batch neighbours, that models share identical vision towers, and that the
//! groups of an image share its cross-attention keys and values.

use super::{Reference, TestedOps, assert_close, generation, load, tokens};
use crate::engine::backend::{Backend, SinglePassOutput, SinglePassRow};
use crate::model::group::EncoderStates;
use crate::model::ops::Ops;
use crate::task::{ModelId, TowerId, VisionOutput};

/// Maximum relative difference between the f32 results of a row alone and of the same row in a batch. It allows only
/// for rounding.
const BATCH_TOLERANCE: f32 = 1e-5;

#[test]
fn models_with_identical_vision_weights_share_one_tower() {
    let backend = load(&["caption-varied", "retrieval", "caption-talkative"]);
    let towers: Vec<TowerId> = backend.models().iter().map(|info| info.tower).collect();
    assert_eq!(towers, [TowerId(0), TowerId(0), TowerId(1)]);
}

#[test]
fn a_batch_of_images_gives_each_image_its_lone_features() {
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
            rows.push(SinglePassRow::MatchPair { image: image.clone(), text: tokens(&text["ids"]) });
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
