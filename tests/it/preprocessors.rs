//! What a processor's configuration means, held against transformers (`tests/fixtures/make/processors.py`).

use std::fs;
use std::path::{Path, PathBuf};

use blip_server::input::{ResizeOrder, resize};
use blip_server::model::LoadError;
use blip_server::model::config::VisionConfig;
use blip_server::model::preprocessor::{Preprocessor, deciding_file};
use blip_server::task::{Pixels, Resample};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    fields: Value,
    #[serde(default)]
    refused: bool,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/processors").join(name)
}

fn read(file: &str, content: &Value) -> Result<Preprocessor, LoadError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    fs::write(&path, content.to_string()).unwrap();
    let vision = VisionConfig { image_size: 8, patch_size: 4, ..VisionConfig::default() };
    Preprocessor::read(Some(&path.into()), &vision, None)
}

/// transformers 5 refuses these, transformers 4 takes class defaults in place of the `null`s.
const NULLS_READ_HERE: [&str; 5] = [
    "size with nulls beside",
    "null resample",
    "null rescale_factor",
    "null image_mean",
    "null image_std",
];

#[test]
fn every_form_of_a_field_means_what_it_means_in_transformers() {
    let goldens: Goldens =
        serde_json::from_slice(&fs::read(fixture("cases.json")).unwrap()).unwrap();
    let file = fs::read(fixture("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let file = fs::read(fixture("picture.safetensors")).unwrap();
    let picture =
        SafeTensors::deserialize(&file).unwrap().tensor("picture").unwrap().data().to_vec();
    let picture = Pixels::new(17, 11, picture);
    assert!(goldens.cases.len() >= 30);
    for Case { name, fields, refused } in goldens.cases {
        let read = read("preprocessor_config.json", &fields);
        if refused {
            assert_eq!(read.is_ok(), NULLS_READ_HERE.contains(&&*name), "{name}: {read:?}");
            continue;
        }
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        let Preprocessor { preprocessing, rescale_factor, mean, std } = read;
        let pixels = resize(&picture, preprocessing, ResizeOrder::Pillow13).unwrap();
        let golden = expected.tensor(&name).unwrap();
        let golden =
            golden.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        for (at, expected) in golden.enumerate() {
            let (channel, place) = (at / 64, at % 64);
            let value = f32::from(pixels.as_bytes()[place * 3 + channel]);
            let value = (value * rescale_factor - mean[channel]) / std[channel];
            assert!(
                (value - expected).abs() <= 2e-6 * expected.abs().max(1.0),
                "{name}: {value} for {expected}"
            );
        }
    }
}

#[test]
fn the_block_of_the_newer_file_counts_where_it_has_one() {
    let block = serde_json::json!({"image_processor": {"size": 8, "resample": 0}, "size": 5});
    let resample = |file, content| read(file, content).map(|read| read.preprocessing.resample);
    assert_eq!(resample("processor_config.json", &block).unwrap(), Resample::Nearest);
    let without_block = serde_json::json!({"size": 8});
    let error = resample("processor_config.json", &without_block).unwrap_err();
    let expected = "processor_config.json: image_processor is missing; accepted: an object with";
    assert!(error.to_string().contains(expected), "{error}");
    // In the older file a field of that name means nothing.
    let error = resample("preprocessor_config.json", &block).unwrap_err().to_string();
    assert!(error.contains("size is 5; accepted: "), "{error}");
}

#[test]
fn what_is_refused_is_named_with_its_value() {
    let message = |fields: Value| {
        let error = read("preprocessor_config.json", &fields).unwrap_err().to_string();
        error.split_once("preprocessor_config.json: ").unwrap().1.to_owned()
    };
    let cases = [
        (
            serde_json::json!({"size": {"shortest_edge": 8}}),
            "size is {\"shortest_edge\":8}; accepted: a number",
        ),
        (serde_json::json!({"size": "8"}), "size is \"8\"; accepted: a number"),
        (
            serde_json::json!({"size": 9}),
            "size is 9; accepted: 8 for both sides, as vision_config.image_size",
        ),
        (
            serde_json::json!({"size": 8, "do_resize": "yes"}),
            "do_resize is \"yes\"; accepted: true or false",
        ),
        (serde_json::json!({"size": 8, "resample": 6}), "resample is 6; accepted: 0 (nearest)"),
        (
            serde_json::json!({"size": 8, "image_mean": [0.5]}),
            "image_mean is [0.5]; accepted: a number, or three",
        ),
        (
            serde_json::json!({"size": 8, "image_std": 0}),
            "image_std is 0; accepted: a positive number",
        ),
        (
            serde_json::json!({"size": 8, "do_center_crop": true}),
            "do_center_crop is true; accepted: false",
        ),
        (
            serde_json::json!({"size": 8, "default_to_square": false}),
            "default_to_square is false; accepted: true if size is a number",
        ),
        (
            serde_json::json!({"size": 8, "image_processor_type": "ViTImageProcessor"}),
            "image_processor_type is \"ViTImageProcessor\"; accepted: BlipImageProcessor",
        ),
        (
            serde_json::json!({"size": 8, "feature_extractor_type": "ViTFeatureExtractor"}),
            "feature_extractor_type is \"ViTFeatureExtractor\"; accepted: BlipImageProcessor",
        ),
    ];
    for (fields, expected) in cases {
        let message = message(fields);
        assert!(message.starts_with(expected), "{message}");
    }
}

/// transformers 5.23 was asked about each of these combinations.
#[test]
fn the_newer_file_decides_where_it_has_the_block() {
    let directory = tempfile::tempdir().unwrap();
    let older = directory.path().join("preprocessor_config.json");
    let newer = directory.path().join("processor_config.json");
    fs::write(&older, "{}").unwrap();
    let cases = [
        (r#"{"image_processor": {"size": 8}}"#, "processor_config.json"),
        (r#"{"processor_class": "BlipProcessor"}"#, "preprocessor_config.json"),
        (r#"{"size": 8}"#, "preprocessor_config.json"),
        (r#"{"image_processor": null}"#, "preprocessor_config.json"),
        ("{", "processor_config.json"),
    ];
    for (content, expected) in cases {
        fs::write(&newer, content).unwrap();
        let file = deciding_file(Some(older.clone()), Some(newer.clone())).unwrap();
        assert!(file.path().ends_with(expected), "{content}");
    }
    let only = |file: &PathBuf| Some(file.clone());
    assert!(
        deciding_file(only(&older), None).unwrap().path().ends_with("preprocessor_config.json")
    );
    assert!(deciding_file(None, only(&newer)).unwrap().path().ends_with("processor_config.json"));
    assert!(deciding_file(None, None).is_none());
}
