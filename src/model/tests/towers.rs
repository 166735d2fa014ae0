//! Compares hidden states and logits of every tower with the reference.

use super::{CHECKPOINTS, Tested, TestedOps, Reference, TOLERANCE, assert_close, ids, load, skipped};
use crate::model::checkpoint::encode_texts;
use crate::model::heads::TextDecoder;
use crate::model::ops::{Ops, RowRun};
use crate::model::text::{CrossAttention, NewTokens, SelfAttention};

pub(super) type TestedActivations = <TestedOps as Ops>::Act;

pub(super) fn flat(backend: &Tested, act: &TestedActivations) -> Vec<f32> {
    backend.ops.to_host(act).unwrap().concat()
}

pub(super) fn features(backend: &Tested, reference: &Reference, photo: &str) -> TestedActivations {
    let pixels = reference.pixels(photo);
    backend.towers[0].encode(&backend.ops, &[&pixels], None).unwrap().remove(0)
}

/// Runs a teacher-forced pass over `ids`. Returns the hidden states and logits at every position.
pub(super) fn forward(
    backend: &Tested,
    decoder: &TextDecoder<TestedOps>,
    ids: &[u32],
    memory: &TestedActivations,
) -> (Vec<f32>, Vec<f32>) {
    let ops = &backend.ops;
    let runs = [RowRun { memory, rows: ids.len() }];
    let sequence = [NewTokens { tokens: ids, position: 0 }];
    let attention = SelfAttention::Causal(&[None]);
    let output = decoder.tower.forward(ops, &sequence, &attention, &CrossAttention::Project(&runs)).unwrap();
    (flat(backend, &output.hidden), flat(backend, &decoder.logits(ops, &output.hidden).unwrap()))
}

#[test]
fn vision_features_equal_the_reference() {
    if skipped() {
        return;
    }
    for checkpoint in CHECKPOINTS {
        let (backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let photos = reference.names("vision");
        assert!(!photos.is_empty());
        for photo in photos {
            let actual = flat(&backend, &features(&backend, &reference, &photo));
            let expected = reference.tensor(&format!("vision.{photo}"));
            assert_close(&format!("{checkpoint} vision.{photo}"), &actual, &expected, TOLERANCE);
        }
    }
}

#[test]
fn caption_decoder_equals_the_reference_at_every_position() {
    if skipped() {
        return;
    }
    for checkpoint in ["caption-varied", "caption-talkative"] {
        let (backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let decoder = backend.models[0].decoder().unwrap();
        for case in reference.list("forward") {
            let name = case["name"].as_str().unwrap();
            let memory = features(&backend, &reference, case["photo"].as_str().unwrap());
            let (hidden, logits) = forward(&backend, decoder, &ids(&case["ids"]), &memory);
            let what = format!("{checkpoint} {name}");
            assert_close(&what, &hidden, &reference.tensor(&format!("hidden.{name}")), TOLERANCE);
            assert_close(&what, &logits, &reference.tensor(&format!("logits.{name}")), TOLERANCE);
        }
    }
}

#[test]
fn question_encoder_and_answer_decoder_equal_the_reference() {
    if skipped() {
        return;
    }
    for checkpoint in ["vqa-varied", "vqa-talkative"] {
        let (backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let encoder = backend.models[0].encoder().unwrap();
        let decoder = backend.models[0].decoder().unwrap();
        for case in reference.list("forward") {
            let name = case["name"].as_str().unwrap();
            let image = features(&backend, &reference, case["photo"].as_str().unwrap());
            let question = ids(&case["question_ids"]);
            let runs = [RowRun { memory: &image, rows: question.len() }];
            let encoded =
                encode_texts(&backend.ops, encoder, &[&question], &CrossAttention::Project(&runs), encoder.depth(), &mut []).unwrap();
            let states = flat(&backend, &encoded.hidden);
            let what = format!("{checkpoint} {name}");
            assert_close(&what, &states, &reference.tensor(&format!("question.{name}")), TOLERANCE);
            let (hidden, logits) = forward(&backend, decoder, &ids(&case["ids"]), &encoded.hidden);
            assert_close(&what, &hidden, &reference.tensor(&format!("hidden.{name}")), TOLERANCE);
            assert_close(&what, &logits, &reference.tensor(&format!("logits.{name}")), TOLERANCE);
        }
    }
}

#[test]
fn text_encoders_equal_the_reference_with_and_without_an_image() {
    if skipped() {
        return;
    }
    for checkpoint in ["retrieval", "base"] {
        let (backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let encoder = backend.models[0].encoder().unwrap();
        for case in reference.list("texts") {
            let (name, text) = (case["name"].as_str().unwrap(), ids(&case["ids"]));
            let alone = encode_texts(&backend.ops, encoder, &[&text], &CrossAttention::Skip, encoder.depth(), &mut []).unwrap();
            let expected = reference.tensor(&format!("text.{name}"));
            assert_close(name, &flat(&backend, &alone.hidden), &expected, TOLERANCE);
            for photo in reference.names("vision") {
                if checkpoint == "base" {
                    continue;
                }
                let image = features(&backend, &reference, &photo);
                let runs = [RowRun { memory: &image, rows: text.len() }];
                let memory = CrossAttention::Project(&runs);
                let both = encode_texts(&backend.ops, encoder, &[&text], &memory, encoder.depth(), &mut []).unwrap();
                let expected = reference.tensor(&format!("multimodal.{photo}.{name}"));
                assert_close(name, &flat(&backend, &both.hidden), &expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn pooled_image_features_apply_the_last_norm_twice() {
    if skipped() {
        return;
    }
    let (backend, reference) = (load(&["base"]), Reference::read("base"));
    for photo in reference.names("pooled") {
        let image = features(&backend, &reference, &photo);
        let pooled = backend.towers[0].pool(&backend.ops, &image).unwrap();
        let expected = reference.tensor(&format!("pooled.{photo}"));
        assert_close(&photo, &flat(&backend, &pooled), &expected, TOLERANCE);
    }
}
