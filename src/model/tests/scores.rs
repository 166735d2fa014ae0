//! Tests candidate scores, matching probabilities, embeddings and cosines through the `Backend` trait that the engine
//! uses.

use super::{Tested, TestedOps, Reference, TOLERANCE, assert_close, generation, load, tokens, skipped};
use crate::engine::backend::{Backend, SinglePassOutput, SinglePassRow};
use crate::model::group::EncoderStates;
use crate::task::{EmbedOutput, Pooling, Embedding, ModelId, TowerId, VisionOutput};

type PassRow = SinglePassRow<EncoderStates<TestedOps>>;

fn embedding(output: &SinglePassOutput<EncoderStates<TestedOps>>) -> &Embedding {
    match output {
        SinglePassOutput::Embedding(embedding) => embedding,
        other => panic!("expected an embedding, not {other:?}"),
    }
}

fn number(output: &SinglePassOutput<EncoderStates<TestedOps>>) -> f32 {
    match output {
        SinglePassOutput::Scored(text) => text.logprob(),
        SinglePassOutput::MatchLogits(logits) => logits.probability(),
        other => panic!("expected a number, not {other:?}"),
    }
}

fn images(backend: &mut Tested, reference: &Reference) -> Vec<(String, EncoderStates<TestedOps>)> {
    let photos = reference.list("photos").iter().map(|photo| photo.as_str().unwrap().to_owned());
    photos
        .map(|photo| {
            let pixels = reference.pixels(&photo);
            (photo, backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0))
        })
        .collect()
}

#[test]
fn candidates_are_scored_in_full_as_the_reference_scores_them() {
    if skipped() {
        return;
    }
    for checkpoint in ["vqa-varied", "vqa-talkative"] {
        let (mut backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let cls = reference.json["ids"]["cls"].as_u64().unwrap() as u32;
        for case in reference.list("candidates") {
            let question = generation::memory(&mut backend, &reference, case);
            let candidates = case["candidates"].as_array().unwrap();
            let rows: Vec<PassRow> = candidates
                .iter()
                .map(|candidate| {
                    // The fixtures list the tokens and the stop token. The `Backend` trait expects the same list with a
                    // leading `[CLS]`.
                    let ids: Vec<u32> =
                        std::iter::once(cls).chain(super::ids(&candidate["ids"])).collect();
                    let candidate = crate::task::TokenIds::new(ids);
                    SinglePassRow::ScoreCandidate { states: question.clone(), candidate }
                })
                .collect();
            let actual: Vec<f32> =
                backend.run_single_pass(ModelId(0), &rows).unwrap().iter().map(number).collect();
            let expected: Vec<f32> = candidates
                .iter()
                .map(|candidate| candidate["logprob"].as_f64().unwrap() as f32)
                .collect();
            assert_close(checkpoint, &actual, &expected, TOLERANCE);
        }
    }
}

#[test]
fn matching_probabilities_and_cosines_equal_the_reference() {
    if skipped() {
        return;
    }
    let (mut backend, reference) = (load(&["retrieval"]), Reference::read("retrieval"));
    let images = images(&mut backend, &reference);
    let texts = reference.list("texts");
    let expected: Vec<f32> =
        reference.tensor("itm_probabilities").chunks_exact(2).map(|pair| pair[1]).collect();
    for is_only_text in [false, true] {
        let pairs: Vec<PassRow> = images
            .iter()
            .flat_map(|(_, image)| {
                let pair = |text: &serde_json::Value| SinglePassRow::MatchPair {
                    image: image.clone(),
                    text: tokens(&text["ids"]),
                    is_only_text,
                };
                texts.iter().map(pair).collect::<Vec<PassRow>>()
            })
            .collect();
        let matching: Vec<f32> =
            backend.run_single_pass(ModelId(0), &pairs).unwrap().iter().map(number).collect();
        assert_close("itm", &matching, &expected, TOLERANCE);
    }
    assert_close(
        "cosine",
        &cosines(&mut backend, &reference),
        &reference.tensor("cosine"),
        TOLERANCE,
    );
}

/// Returns the cosine of every image with every text. Embeds all images and all texts in one backend call.
fn cosines(backend: &mut Tested, reference: &Reference) -> Vec<f32> {
    let images = images(backend, reference);
    let texts = reference.list("texts");
    let rows: Vec<PassRow> = images
        .iter()
        .map(|(_, image)| SinglePassRow::EmbedImage { image: image.clone(), pooling: Pooling::Projection })
        .chain(texts.iter().map(|text| SinglePassRow::EmbedText { text: tokens(&text["ids"]), output: EmbedOutput::PROJECTION }))
        .collect();
    let outputs = backend.run_single_pass(ModelId(0), &rows).unwrap();
    let unit: Vec<Embedding> =
        outputs.iter().map(|output| embedding(output).normalized().unwrap()).collect();
    let (images, texts) = unit.split_at(images.len());
    images.iter().flat_map(|image| texts.iter().map(|text| image.dot(text))).collect()
}

#[test]
fn retrieval_embeddings_equal_the_reference() {
    if skipped() {
        return;
    }
    let (mut backend, reference) = (load(&["retrieval"]), Reference::read("retrieval"));
    for (photo, image) in images(&mut backend, &reference) {
        let rows = [SinglePassRow::EmbedImage { image: image.clone(), pooling: Pooling::Projection }];
        let output = backend.run_single_pass(ModelId(0), &rows).unwrap();
        let expected = reference.tensor(&format!("image_embed.{photo}"));
        assert_close(&photo, embedding(&output[0]).as_slice(), &expected, TOLERANCE);
        for text in reference.list("texts") {
            let name = text["name"].as_str().unwrap();
            let rows =
                [SinglePassRow::EmbedMultimodal {
                    image: image.clone(),
                    text: tokens(&text["ids"]),
                    output: EmbedOutput::PROJECTION,
                }];
            let output = backend.run_single_pass(ModelId(0), &rows).unwrap();
            let states = reference.tensor(&format!("multimodal.{photo}.{name}"));
            let actual = embedding(&output[0]).as_slice();
            assert_close(name, actual, &states[..actual.len()], TOLERANCE);
        }
    }
    for text in reference.list("texts") {
        let name = text["name"].as_str().unwrap();
        let rows = [SinglePassRow::EmbedText { text: tokens(&text["ids"]), output: EmbedOutput::PROJECTION }];
        let output = backend.run_single_pass(ModelId(0), &rows).unwrap();
        let expected = reference.tensor(&format!("text_embed.{name}"));
        assert_close(name, embedding(&output[0]).as_slice(), &expected, TOLERANCE);
    }
}

#[test]
fn blip_model_features_and_logits_equal_the_reference() {
    if skipped() {
        return;
    }
    let (mut backend, reference) = (load(&["base"]), Reference::read("base"));
    for (photo, image) in images(&mut backend, &reference) {
        let rows = [SinglePassRow::EmbedImage { image: image.clone(), pooling: Pooling::Projection }];
        let output = backend.run_single_pass(ModelId(0), &rows).unwrap();
        let expected = reference.tensor(&format!("image_features.{photo}"));
        assert_close(&photo, embedding(&output[0]).as_slice(), &expected, TOLERANCE);
        for text in reference.list("texts") {
            let (name, ids) = (text["name"].as_str().unwrap(), tokens(&text["ids"]));
            let rows = [
                SinglePassRow::EmbedMultimodal {
                    image: image.clone(),
                    text: ids.clone(),
                    output: EmbedOutput::PROJECTION,
                },
                SinglePassRow::EmbedText { text: ids, output: EmbedOutput::PROJECTION },
            ];
            let output = backend.run_single_pass(ModelId(0), &rows).unwrap();
            let both = reference.tensor(&format!("multimodal_features.{photo}.{name}"));
            assert_close(name, embedding(&output[0]).as_slice(), &both, TOLERANCE);
            let alone = reference.tensor(&format!("text_features.{name}"));
            assert_close(name, embedding(&output[1]).as_slice(), &alone, TOLERANCE);
        }
    }
    let cosines = cosines(&mut backend, &reference);
    assert_close("cosine", &cosines, &reference.tensor("cosine"), TOLERANCE);
    let scale = backend.models()[0].logit_scale.unwrap();
    let logits: Vec<f32> = cosines.iter().map(|cosine| cosine * scale).collect();
    assert_close("logits", &logits, &reference.tensor("logits_per_image"), TOLERANCE);
}
