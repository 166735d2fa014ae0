//! Compares the results of this folder with those of Pillow 13 and transformers 5.23 (`tests/fixtures/README.md`
//! documents every key of the golden files).

use super::{
    InputError, InputSettings, ResizeOrder, Tokenizer, decode, image_id, inspect, resize,
    sniff_format,
};
use crate::task::{Pixels, Preprocessing, Resample};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn read_json<T: DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&fs::read(fixture(path)).unwrap()).unwrap()
}

fn decode_file(path: &str) -> Pixels {
    let file = fs::read(fixture(path)).unwrap();
    let settings = InputSettings::default();
    decode(&file, &inspect(&file, &settings).unwrap(), &settings, &|| false).unwrap()
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResizeSource {
    Formula(String),
    File(String),
}

#[derive(Deserialize)]
struct ResizeCase {
    name: String,
    source: ResizeSource,
    width: u32,
    height: u32,
    to_width: u32,
    to_height: u32,
    sha256: String,
}

fn sample(formula: &str, x: u64, y: u64, c: u64) -> u8 {
    let value = match formula {
        "mix" => x * 7 + y * 13 + c * 29 + x * y,
        "smooth" => (x * 2 + y + c * 40) / 3,
        "noise" => {
            let mixed = ((x * 73_856_093) ^ (y * 19_349_663) ^ (c * 83_492_791)) % (1 << 32);
            ((mixed * 2_654_435_761) % (1 << 32)) >> 24
        }
        "edges" => 255 * ((x / 3 + y / 5 + c) % 2),
        other => panic!("no formula {other}"),
    };
    (value % 256) as u8
}

/// Returns a picture whose samples are computed by a formula (see [`sample`]).
fn computed(formula: &str, width: u32, height: u32) -> Pixels {
    let rows = (0..u64::from(height)).flat_map(|y| (0..u64::from(width)).map(move |x| (x, y)));
    let data = rows.flat_map(|(x, y)| (0..3).map(move |c| sample(formula, x, y, c)));
    Pixels::new(width, height, data.collect())
}

#[derive(Deserialize)]
struct Filters {
    cases: Vec<FilterCase>,
}

#[derive(Deserialize)]
struct FilterCase {
    name: String,
    formula: String,
    width: u32,
    height: u32,
    to_width: u32,
    to_height: u32,
    /// Digests in the order of Pillow's filter numbers.
    filters: [String; 6],
    /// Digest of the bicubic result with the horizontal pass first.
    horizontal_first: String,
}

#[test]
fn every_filter_equals_pillow_bit_for_bit() {
    let goldens: Filters = read_json("resize/filters.json");
    assert!(goldens.cases.len() >= 40);
    let mut wrong = Vec::new();
    for case in goldens.cases {
        let picture = computed(&case.formula, case.width, case.height);
        let digest = |resample, order| {
            let to = Preprocessing { width: case.to_width, height: case.to_height, resample };
            image_id(resize(&picture, to, order).unwrap().as_bytes()).to_string()
        };
        for (resample, expected) in Resample::ALL.into_iter().zip(&case.filters) {
            if digest(resample, ResizeOrder::Pillow13) != format!("sha256:{expected}") {
                wrong.push((case.name.clone(), format!("{resample:?}")));
            }
        }
        let found = digest(Resample::Bicubic, ResizeOrder::HorizontalFirst);
        if found != format!("sha256:{}", case.horizontal_first) {
            wrong.push((case.name, "horizontal first".to_owned()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn resizing_equals_pillow_bit_for_bit() {
    let cases: Vec<ResizeCase> = read_json("resize/cases.json");
    assert!(cases.len() >= 30);
    let mut wrong = Vec::new();
    for case in cases {
        let picture = match &case.source {
            ResizeSource::File(path) => decode_file(path),
            ResizeSource::Formula(formula) => computed(formula, case.width, case.height),
        };
        assert_eq!((picture.width(), picture.height()), (case.width, case.height), "{}", case.name);
        let to = Preprocessing::bicubic(case.to_width, case.to_height);
        let pixels = resize(&picture, to, ResizeOrder::Pillow13).unwrap();
        let digest = image_id(pixels.as_bytes()).to_string();
        if digest != format!("sha256:{}", case.sha256) {
            wrong.push(case.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[derive(Deserialize)]
struct ImageCase {
    file: String,
    format: String,
    width: u32,
    height: u32,
    tensor: String,
    /// For 16-bit grey, the key of a tensor with the high byte of each sample. The code in this folder returns this
    /// tensor; Pillow returns other values.
    high_byte: Option<String>,
}

#[test]
fn decoding_equals_pillow() {
    let expected = fs::read(fixture("images/expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    let cases: Vec<ImageCase> = read_json("images/cases.json");
    assert!(cases.len() >= 40);
    let mut wrong = Vec::new();
    for case in cases {
        let path = format!("images/{}", case.file);
        assert_eq!(sniff_format(&fs::read(fixture(&path)).unwrap()).unwrap().name(), case.format);
        let picture = decode_file(&path);
        let golden = expected.tensor(case.high_byte.as_ref().unwrap_or(&case.tensor)).unwrap();
        let size = (picture.width(), picture.height()) == (case.width, case.height);
        let pairs = picture.as_bytes().iter().zip(golden.data());
        let distance = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(u8::MAX);
        if !size || distance > 0 {
            wrong.push((case.file, distance));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[derive(Deserialize)]
struct Orientations {
    cases: Vec<OrientationCase>,
}

#[derive(Deserialize)]
struct OrientationCase {
    name: String,
    width: Option<u32>,
    height: Option<u32>,
    /// `None` if Pillow rejects the file.
    sha256: Option<String>,
}

#[test]
fn pictures_are_turned_as_pillow_turns_them() {
    let goldens: Orientations = read_json("orientation/cases.json");
    let files = fs::read(fixture("orientation/files.safetensors")).unwrap();
    let files = SafeTensors::deserialize(&files).unwrap();
    assert!(goldens.cases.len() >= 90);
    let settings = InputSettings::default();
    let mut wrong = Vec::new();
    for case in goldens.cases {
        let file = files.tensor(&case.name).unwrap();
        let picture = inspect(file.data(), &settings)
            .and_then(|header| decode(file.data(), &header, &settings, &|| false))
            .ok();
        let found = picture.as_ref().map(|picture| {
            (picture.width(), picture.height(), image_id(picture.as_bytes()).to_string())
        });
        let expected = case
            .sha256
            .map(|sha256| (case.width.unwrap(), case.height.unwrap(), format!("sha256:{sha256}")));
        if found != expected {
            wrong.push((case.name, found.map(|(width, height, _)| (width, height))));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[derive(Deserialize)]
struct TokenizerGoldens {
    vocabulary_size: usize,
    encode: Vec<EncodeCase>,
    plain_special: Vec<EncodeCase>,
    decode: Vec<DecodeCase>,
}

#[derive(Deserialize)]
struct EncodeCase {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct DecodeCase {
    ids: Vec<u32>,
    text: String,
    clean: String,
}

/// Returns the text of `ids` twice: decoded in one call, and decoded incrementally with the first two ids as the
/// prompt.
fn decoded(tokenizer: &Tokenizer, ids: &[u32]) -> [String; 2] {
    let (prompt, new) = ids.split_at(ids.len().min(2));
    let mut detokenizer = tokenizer.detokenizer(prompt);
    let mut pieces: String = new.iter().map(|&id| detokenizer.push(id)).collect();
    pieces += &detokenizer.finish();
    [tokenizer.decode(ids), pieces]
}

#[derive(Deserialize)]
struct Normalisers {
    texts: Vec<String>,
    cases: Vec<NormaliserCase>,
}

#[derive(Deserialize)]
struct NormaliserCase {
    config: serde_json::Value,
    normalizer: serde_json::Value,
    ids: Vec<Vec<u32>>,
}

#[test]
fn the_file_that_decides_in_transformers_decides_how_texts_are_normalised() {
    let goldens: Normalisers = read_json("reference/normalisers.json");
    let mut document: serde_json::Value = read_json("caption-varied/tokenizer.json");
    assert!(goldens.cases.len() >= 40);
    for NormaliserCase { config, normalizer, ids } in goldens.cases {
        document["normalizer"] = normalizer.clone();
        let tokenizer = Tokenizer::from_texts(
            Path::new("tokenizer.json"),
            &document.to_string(),
            &config.to_string(),
            &InputSettings::default(),
        );
        let tokenizer = tokenizer.unwrap();
        for (text, expected) in goldens.texts.iter().zip(ids) {
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(found.as_slice(), expected, "{config} {normalizer} {text}");
        }
    }
}

#[test]
fn tokenizing_equals_transformers() {
    let goldens: TokenizerGoldens = read_json("reference/tokenizer.json");
    let load = |name| Tokenizer::load(&fixture(name), &InputSettings::default()).unwrap();
    // The first tokenizer is loaded from tokenizer.json and the second from vocab.txt alone; the third cleans up
    // spaces.
    let (json, vocabulary, cleaning) =
        (load("caption-varied"), load("vqa-varied"), load("caption-talkative"));
    for tokenizer in [&json, &vocabulary] {
        assert_eq!(tokenizer.vocab_size(), goldens.vocabulary_size);
        for case in goldens.encode.iter().chain(&goldens.plain_special) {
            // The reference drops control characters; this tokenizer rejects them.
            let control = |c: char| c.is_ascii_control() && !matches!(c, '\n' | '\r' | '\t');
            match tokenizer.encode(&case.text) {
                Ok(ids) => assert_eq!(ids.as_slice(), case.ids, "{:?}", case.text),
                Err(InputError::InvalidText { .. }) if case.text.contains(control) => {}
                Err(error) => panic!("{:?}: {error}", case.text),
            }
        }
        for case in &goldens.decode {
            let [whole, pieces] = decoded(tokenizer, &case.ids);
            assert_eq!((&whole, &pieces), (&case.text, &case.text));
        }
    }
    for case in &goldens.decode {
        let [whole, pieces] = decoded(&cleaning, &case.ids);
        assert_eq!((&whole, &pieces), (&case.clean, &case.clean));
    }
}

#[derive(Deserialize)]
struct Captions {
    generation: Vec<CaptionCase>,
}

#[derive(Deserialize)]
struct CaptionCase {
    input_ids: Vec<u32>,
    sequences: Vec<CaptionGolden>,
}

#[derive(Deserialize)]
struct CaptionGolden {
    new_ids: Vec<u32>,
    text: String,
    continuation: String,
}

#[test]
fn captions_and_their_continuations_read_as_in_the_reference() {
    for checkpoint in ["caption-varied", "caption-talkative"] {
        let tokenizer = Tokenizer::load(&fixture(checkpoint), &InputSettings::default()).unwrap();
        let captions: Captions = read_json(&format!("reference/{checkpoint}.json"));
        for case in captions.generation {
            let prompt = &case.input_ids[1..];
            for CaptionGolden { new_ids, text, continuation } in case.sequences {
                assert_eq!(tokenizer.decode(&[prompt, &new_ids].concat()), text);
                assert_eq!(tokenizer.decode_continuation(prompt, &new_ids), continuation);
            }
        }
    }
}
