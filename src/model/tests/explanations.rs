//! Compares attention weights for explanations with the reference, alone and with neighbours in a batch.

use super::{Reference, TOLERANCE, Tested, assert_close, ids, load, tokens, skipped};
use crate::engine::backend::{Backend, GroupSpec, SinglePassOutput, SinglePassRow};
use crate::task::{Explain, GenerationParams, ModelId, PatchWeights, TowerId, VisionOutput};

/// All layers, and the last one alone.
fn layer_choices(layers: u64) -> [(&'static str, Explain); 2] {
    let layers = layers as u16;
    [
        ("all", Explain((0..layers).collect::<Vec<_>>().into())),
        ("last", Explain(vec![layers - 1].into())),
    ]
}

fn assert_equal(what: &str, attention: Option<&Vec<PatchWeights>>, reference: &Reference) {
    let actual: Vec<f32> = attention.expect(what).concat();
    assert_close(what, &actual, &reference.tensor(what), TOLERANCE);
}

/// Generates captions of the image together: one for each choice of layers, and one that is not explained.
fn captions(backend: &mut Tested, case: &serde_json::Value, reference: &Reference) {
    let pixels = Reference::read(case["checkpoint"].as_str().unwrap());
    let pixels = pixels.pixels(case["photo"].as_str().unwrap());
    let states = backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0);
    let most = case["max_new_tokens"].as_u64().unwrap() as usize;
    let prompt = (!case["prompt_ids"].is_null()).then(|| tokens(&case["prompt_ids"]));
    let choices = layer_choices(case["layers"].as_u64().unwrap());
    let kinds: Vec<_> =
        choices.into_iter().map(|(kind, explain)| (kind, Some(explain))).chain([("", None)]).collect();
    let mut groups: Vec<_> = kinds
        .iter()
        .map(|(_, explain)| {
            backend.open(GroupSpec {
                model: ModelId(0),
                states: states.clone(),
                prompt: prompt.clone(),
                params: GenerationParams::greedy(most),
                sequence: 0,
                explain: explain.clone(),
            })
        })
        .collect();
    let mut sequences = Vec::new();
    while sequences.is_empty() {
        let mut all: Vec<_> = groups.iter_mut().collect();
        let events = backend.step(ModelId(0), &mut all).unwrap();
        sequences = events.into_iter().filter_map(|event| event.finished).flatten().collect();
    }
    for (sequence, (kind, explain)) in sequences.iter().zip(&kinds) {
        let new: Vec<u32> = sequence.tokens.iter().map(|token| token.id).collect();
        assert_eq!(new, ids(&case["new_ids"]));
        let key = format!("{}.{kind}", case["maps"].as_str().unwrap());
        match explain {
            Some(_) => assert_equal(&key, sequence.attention.as_ref(), reference),
            None => assert_eq!(sequence.attention, None),
        }
    }
}

/// Encodes the question twice, with each choice of layers, and once more without.
fn questions(backend: &mut Tested, case: &serde_json::Value, reference: &Reference) {
    let pixels = Reference::read(case["checkpoint"].as_str().unwrap());
    let pixels = pixels.pixels(case["photo"].as_str().unwrap());
    let image = backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0);
    let choices = layer_choices(case["layers"].as_u64().unwrap());
    let row = |explain| SinglePassRow::EncodeQuestion {
        image: image.clone(),
        question: tokens(&case["ids"]),
        is_only_text: true,
        explain,
    };
    let mut rows = vec![row(None)];
    rows.extend(choices.iter().map(|(_, explain)| row(Some(explain.clone()))));
    let outputs = backend.run_single_pass(ModelId(0), &rows).unwrap();
    let attention = |output: &SinglePassOutput<_>| match output {
        SinglePassOutput::EncoderStates { attention, .. } => attention.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(attention(&outputs[0]), None);
    for (output, (kind, _)) in outputs[1..].iter().zip(&choices) {
        let key = format!("{}.{kind}", case["maps"].as_str().unwrap());
        assert_equal(&key, attention(output).as_ref(), reference);
    }
}

#[test]
fn attention_weights_equal_the_reference() {
    if skipped() {
        return;
    }
    let reference = Reference::read("explanations");
    for case in reference.list("cases") {
        let mut backend = load(&[case["checkpoint"].as_str().unwrap()]);
        if case["question"].is_string() {
            questions(&mut backend, case, &reference);
        } else {
            captions(&mut backend, case, &reference);
        }
    }
}
