//! Tests checkpoints with an altered configuration or altered tensor names: other activations, an image size that is
//! not a multiple of the patch size, captions that fill every position, and `LayerNorm` tensors under their old names.
//! The expected values are in `reference/altered.json` and its tensors.

use std::path::Path;

use candle_core::Device as CandleDevice;
use serde_json::{Value, json};

use super::towers::{features, flat, forward};
use super::{CPU_F32, Reference, TOLERANCE, Tested, assert_close, distance, fixtures, generation, ids, load, make, spec, skipped};
use crate::engine::backend::Backend;
use crate::model::checkpoint::encode_texts;
use crate::model::ops::RowRun;
use crate::model::text::CrossAttention;
use crate::model::{BlipBackend, ModelSpec};
use crate::task::{Pixels, TowerId, VisionOutput};

/// Returns the checkpoint with these fields of its configuration replaced. Writes the changed files to `directory`.
fn altered(directory: &Path, checkpoint: &str, vision: &Value, text: &Value) -> ModelSpec {
    let mut spec = spec(checkpoint);
    let read = |path: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let write = |name: &str, document: &Value| {
        let path = directory.join(name);
        std::fs::write(&path, document.to_string()).unwrap();
        path.into()
    };
    let mut config = read(spec.files.config.path());
    for (part, fields) in [("vision_config", vision), ("text_config", text)] {
        for (field, value) in fields.as_object().unwrap() {
            config[part][field] = value.clone();
        }
    }
    if let Some(side) = vision.get("image_size") {
        let file = spec.files.preprocessor.as_ref().unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut document = read(file.path());
        let block = if document["image_processor"].is_object() {
            &mut document["image_processor"]
        } else {
            &mut document
        };
        block["size"] = json!({"height": side, "width": side});
        spec.files.preprocessor = Some(write(&name, &document));
    }
    spec.files.config = write("config.json", &config);
    spec
}

fn loaded(spec: ModelSpec) -> Tested {
    BlipBackend::load(make(), &[spec], CPU_F32, |_| {}).unwrap()
}

/// Returns the states that the reference records for the checkpoint's model class, with their names in the reference.
fn states(backend: &Tested, checkpoint: &str, photo: &str) -> Vec<(&'static str, Vec<f32>)> {
    let (ops, reference) = (&backend.ops, Reference::read(checkpoint));
    let image = features(backend, &reference, photo);
    let mut states = vec![("vision", flat(backend, &image))];
    let model = &backend.models[0];
    if let Some(decoder) = model.decoder() {
        let case = &reference.list("forward")[0];
        let mut memory = image.clone();
        if let Some(encoder) = model.encoder() {
            let question = ids(&case["question_ids"]);
            let runs = [RowRun { memory: &image, rows: question.len() }];
            let encoded = encode_texts(ops, encoder, &[&question], &CrossAttention::Project(&runs), encoder.depth(), &mut []);
            memory = encoded.unwrap().hidden;
            states.push(("question", flat(backend, &memory)));
        }
        let tokens = ids(&case["ids"]);
        let (hidden, logits) = forward(backend, decoder, &tokens, &memory);
        let last = logits.len() / tokens.len() * (tokens.len() - 1);
        states.push(("hidden", hidden));
        states.push(("logits", logits[last..].to_vec()));
        return states;
    }
    let (encoder, text) = (model.encoder().unwrap(), ids(&reference.list("texts")[0]["ids"]));
    let alone = encode_texts(ops, encoder, &[&text], &CrossAttention::Skip, encoder.depth(), &mut []).unwrap();
    states.push(("text", flat(backend, &alone.hidden)));
    if checkpoint == "retrieval" {
        let runs = [RowRun { memory: &image, rows: text.len() }];
        let both = encode_texts(ops, encoder, &[&text], &CrossAttention::Project(&runs), encoder.depth(), &mut []).unwrap();
        states.push(("multimodal", flat(backend, &both.hidden)));
    }
    states
}

/// The tolerances are small enough to detect a wrong activation. For each case, the script that made the fixtures also
/// ran the checkpoint with a different activation in one tower. The tolerance is at most a tenth of the error of that
/// run.
#[test]
fn every_activation_of_either_tower_equals_the_reference() {
    if skipped() {
        return;
    }
    let reference = Reference::read("altered");
    let cases = reference.list("activations");
    assert!(cases.len() >= 16, "{}", cases.len());
    for case in cases {
        let directory = tempfile::tempdir().unwrap();
        let word = |key: &str| case[key].as_str().unwrap();
        let (vision, text) =
            (json!({"hidden_act": word("vision")}), json!({"hidden_act": word("text")}));
        let checkpoint = word("checkpoint");
        let backend = loaded(altered(directory.path(), checkpoint, &vision, &text));
        let tolerance = case["tolerance"].as_f64().unwrap() as f32;
        for (tensor, actual) in states(&backend, checkpoint, word("photo")) {
            let what = format!("{tensor}.{}", word("name"));
            let expected = reference.tensor(&what);
            assert_close(&format!("{what} {vision} {text}"), &actual, &expected, tolerance);
        }
    }
}

/// Returns a square image with this side and the values `(x*7 + y*13 + c*29 + x*y) % 256`.
fn mix(side: usize) -> Pixels {
    let value = |y: usize, x: usize, c: usize| ((x * 7 + y * 13 + c * 29 + x * y) % 256) as u8;
    let bytes: Vec<u8> =
        (0..side * side * 3).map(|i| value(i / 3 / side, i / 3 % side, i % 3)).collect();
    Pixels::new(side as u32, side as u32, bytes)
}

#[test]
fn pixels_beyond_the_last_whole_patch_are_left_out_as_the_convolution_does() {
    if skipped() {
        return;
    }
    let reference = Reference::read("altered");
    for case in reference.list("odd_sizes") {
        let directory = tempfile::tempdir().unwrap();
        let checkpoint = case["checkpoint"].as_str().unwrap();
        let side = case["image_size"].as_u64().unwrap() as usize;
        let size = json!({"image_size": side});
        let mut backend = loaded(altered(directory.path(), checkpoint, &size, &json!({})));
        let expected = reference.tensor(&format!("odd.{checkpoint}"));
        // In the second case the image is the second of a batch. The side is not a multiple of the patch size, so an
        // image has more bytes than its patches have values. An implementation that finds the second image's patches by
        // the byte length of the first image would fail here.
        let (one, other) =
            (mix(side), Pixels::new(side as u32, side as u32, vec![9; side * side * 3]));
        for images in [vec![&one], vec![&other, &one]] {
            let features = backend.encode(VisionOutput::last(TowerId(0)), &images).unwrap();
            let actual = flat(&backend, features.last().unwrap().states());
            assert_close(&format!("{checkpoint} {side}"), &actual, &expected, TOLERANCE);
        }
    }
}

#[test]
fn a_prompt_and_its_new_tokens_may_need_every_position() {
    if skipped() {
        return;
    }
    let (altered, reference) = (Reference::read("altered"), Reference::read("caption-varied"));
    let mut backend = load(&["caption-varied"]);
    let positions = backend.models()[0].text_towers().max_tokens;
    let cases = altered.list("last_position");
    let most = |case: &Value| ids(&case["input_ids"]).len() + ids(&case["new_ids"]).len();
    assert_eq!(cases.iter().map(most).max(), Some(positions + 1), "the last token is not read");
    for case in cases {
        let memory = generation::memory(&mut backend, &reference, case);
        let group = generation::open(&mut backend, &reference, case, memory);
        let sequences = generation::run_alone(&mut backend, group);
        let new: Vec<u32> = sequences[0].tokens.iter().map(|token| token.id).collect();
        assert_eq!(new, ids(&case["new_ids"]), "{} new", new.len());
    }
}

#[test]
fn layer_norm_tensors_are_found_under_their_old_names() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let weights = fixtures().join("caption-varied/model.safetensors");
    let tensors = candle_core::safetensors::load(weights, &CandleDevice::Cpu).unwrap();
    let old = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let renamed: std::collections::HashMap<String, _> =
        tensors.into_iter().map(|(name, tensor)| (old(&name), tensor)).collect();
    assert!(renamed.keys().filter(|name| name.ends_with("LayerNorm.gamma")).count() > 4);
    let path = directory.path().join("model.safetensors");
    candle_core::safetensors::save(&renamed, &path).unwrap();
    let mut spec = spec("caption-varied");
    spec.files.weights = crate::model::load::WeightFiles::Safetensors(vec![path.into()]);
    let (renamed, plain) = (loaded(spec), load(&["caption-varied"]));
    let photo = "chelsea";
    let expected = states(&plain, "caption-varied", photo);
    for ((tensor, actual), (_, expected)) in
        states(&renamed, "caption-varied", photo).iter().zip(&expected)
    {
        assert!(distance(actual, expected) <= 1e-6, "{tensor}");
    }
}
