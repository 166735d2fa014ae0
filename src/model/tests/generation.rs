//! Compares token ids with those of transformers' `generate`, for every deterministic generation parameter, alone and
//! in combination with others.

use serde_json::Value;

use super::{Tested, TestedOps, Reference, assert_close, ids, load, skipped, case_step};
use crate::engine::backend::{Backend, GroupSpec, SinglePassOutput, SinglePassRow};
use crate::model::group::{Group, EncoderStates};
use crate::task::{VisionOutput, 
    EarlyStopping, FinishReason, GenerationParams, ModelId, Sequence, Strategy, TokenIds, TowerId,
};

const MODEL: ModelId = ModelId(0);

/// Returns the generation parameters of a golden case, which lists them under their names in the API.
pub(super) fn params(json: &Value) -> GenerationParams {
    let count = |name: &str, default: usize| json[name].as_u64().map_or(default, |n| n as usize);
    let number = |name: &str| json[name].as_f64().map_or(1.0, |n| n as f32);
    let known = [
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "num_return_sequences",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "length_penalty",
        "early_stopping",
    ];
    for name in json.as_object().unwrap().keys() {
        assert!(
            known.contains(&name.as_str()),
            "the golden has a parameter that this test ignores: {name}"
        );
    }
    let early_stopping = match &json["early_stopping"] {
        Value::Bool(true) => EarlyStopping::WhenFull,
        Value::String(word) if word == "never" => EarlyStopping::Never,
        _ => EarlyStopping::Heuristic,
    };
    let strategy = match count("num_beams", 1) {
        1 => Strategy::Greedy,
        num_beams => Strategy::Beams {
            num_beams,
            num_return_sequences: count("num_return_sequences", 1),
            length_penalty: number("length_penalty"),
            early_stopping,
            renormalize_logits: false,
        },
    };
    GenerationParams {
        max_new_tokens: count("max_new_tokens", 20),
        min_new_tokens: count("min_new_tokens", 0),
        repetition_penalty: number("repetition_penalty"),
        no_repeat_ngram_size: count("no_repeat_ngram_size", 0),
        strategy,
        ..GenerationParams::greedy(20)
    }
}

/// Returns the encoder states that the decoder of a golden case attends to: those of the image, or of the question
/// about it.
pub(super) fn memory(
    backend: &mut Tested,
    reference: &Reference,
    case: &Value,
) -> EncoderStates<TestedOps> {
    let pixels = reference.pixels(case["photo"].as_str().unwrap());
    let image = backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0);
    if case["question_ids"].is_null() {
        return image;
    }
    let question = TokenIds::new(ids(&case["question_ids"]));
    let row = SinglePassRow::EncodeQuestion { image, question, is_only_text: true, explain: None };
    match backend.run_single_pass(MODEL, &[row]).unwrap().remove(0) {
        SinglePassOutput::EncoderStates { states, .. } => states,
        other => panic!("a question gives a memory, not {other:?}"),
    }
}

/// Opens a group for a golden case. The `input_ids` of the case start with `bos`, whereas the `Backend` trait expects
/// `[CLS] prompt [SEP]`.
pub(super) fn open(
    backend: &mut Tested,
    reference: &Reference,
    case: &Value,
    memory: EncoderStates<TestedOps>,
) -> Group<TestedOps> {
    let special = &reference.json["ids"];
    let start = ids(&case["input_ids"]);
    let prompt = (start.len() > 1).then(|| {
        let cls = special["cls"].as_u64().unwrap() as u32;
        let sep = special["sep"].as_u64().unwrap() as u32;
        let middle = start[1..].iter().copied();
        TokenIds::new([cls].into_iter().chain(middle).chain([sep]).collect::<Vec<u32>>())
    });
    let params = params(&case["params"]);
    backend.open(GroupSpec { model: MODEL, states: memory, prompt, params, sequence: 0, explain: None })
}

pub(super) fn run_alone(backend: &mut Tested, mut group: Group<TestedOps>) -> Vec<Sequence> {
    loop {
        let event = backend.step(MODEL, &mut [&mut group]).unwrap().remove(0);
        if let Some(sequences) = event.finished {
            return sequences;
        }
    }
}

fn check(what: &str, case: &Value, actual: &[Sequence]) {
    let expected = case["sequences"].as_array().unwrap();
    assert_eq!(actual.len(), expected.len(), "{what}: number of sequences");
    for (actual, expected) in actual.iter().zip(expected) {
        let new: Vec<u32> = actual.tokens.iter().map(|token| token.id).collect();
        assert_eq!(new, ids(&expected["new_ids"]), "{what}");
        let reason = match actual.finish_reason {
            FinishReason::Stop | FinishReason::StopString => "stop",
            FinishReason::Length => "length",
        };
        assert_eq!(reason, expected["finish_reason"], "{what}");
        let logprobs: Vec<f32> = actual.tokens.iter().map(|token| token.logprob).collect();
        assert_close(what, &logprobs, &super::floats(&expected["logprobs"]), super::TOLERANCE);
    }
}

fn generation_equals_the_reference(checkpoint: &str) {
    let (mut backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
    let cases = reference.list("generation");
    assert!(cases.len() >= 3, "{checkpoint} has goldens");
    for case in cases.iter().step_by(case_step()) {
        let memory = memory(&mut backend, &reference, case);
        let group = open(&mut backend, &reference, case, memory);
        let what = format!("{checkpoint} {}", case["name"]);
        check(&what, case, &run_alone(&mut backend, group));
    }
}

#[test]
fn varied_captions_equal_the_reference() {
    if skipped() {
        return;
    }
    generation_equals_the_reference("caption-varied");
}

#[test]
fn talkative_captions_equal_the_reference_for_every_parameter() {
    if skipped() {
        return;
    }
    generation_equals_the_reference("caption-talkative");
}

#[test]
fn varied_answers_equal_the_reference() {
    if skipped() {
        return;
    }
    generation_equals_the_reference("vqa-varied");
}

#[test]
fn talkative_answers_equal_the_reference_for_every_parameter() {
    if skipped() {
        return;
    }
    generation_equals_the_reference("vqa-talkative");
}

/// Runs all golden cases of a checkpoint in one ragged batch. In each step, one more case joins the batch (continuous
/// batching). So prefill rows, decoding rows and beams share steps, and every answer must still equal the reference.
#[test]
fn goldens_that_join_one_running_batch_keep_their_answers() {
    if skipped() {
        return;
    }
    for checkpoint in ["caption-talkative", "vqa-talkative"] {
        let (mut backend, reference) = (load(&[checkpoint]), Reference::read(checkpoint));
        let cases = reference.list("generation").len();
        let mut waiting: Vec<usize> = (0..cases).step_by(case_step()).collect();
        waiting.reverse();
        let mut running: Vec<(usize, Group<TestedOps>)> = Vec::new();
        let mut largest = 0;
        while !(waiting.is_empty() && running.is_empty()) {
            if let Some(index) = waiting.pop() {
                let case = &reference.list("generation")[index];
                let memory = memory(&mut backend, &reference, case);
                running.push((index, open(&mut backend, &reference, case, memory)));
            }
            largest = largest.max(running.len());
            let mut groups: Vec<&mut Group<TestedOps>> =
                running.iter_mut().map(|(_, group)| group).collect();
            let events = backend.step(MODEL, &mut groups).unwrap();
            let indices: Vec<usize> = running.iter().map(|(index, _)| *index).collect();
            for (index, event) in indices.into_iter().zip(events) {
                if let Some(sequences) = event.finished {
                    let case = &reference.list("generation")[index];
                    check(&format!("{checkpoint} {} in a batch", case["name"]), case, &sequences);
                    running.retain(|(running, _)| *running != index);
                }
            }
        }
        assert!(largest >= 4, "only {largest} groups ever ran together");
    }
}
