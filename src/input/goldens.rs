//! This folder against what Pillow 13 and transformers 5.23 say (`tests/fixtures/README.md` names every key).

use super::{
    InputError, InputSettings, Picture, Tokenizer, decode, image_id, inspect, resize, sniff_format,
};
use crate::task::Preprocessing;
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

fn decode_file(path: &str) -> Picture {
    let file = fs::read(fixture(path)).unwrap();
    let settings = InputSettings::default();
    decode(&file, &inspect(&file, &settings).unwrap(), &settings).unwrap()
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Formula(String),
    File(String),
}

#[derive(Deserialize)]
struct ResizeCase {
    name: String,
    source: Source,
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

#[test]
fn resizing_equals_pillow_bit_for_bit() {
    let cases: Vec<ResizeCase> = read_json("resize/cases.json");
    assert!(cases.len() >= 30);
    let mut wrong = Vec::new();
    for case in cases {
        let picture = match &case.source {
            Source::File(path) => decode_file(path),
            Source::Formula(formula) => {
                let (width, height) = (u64::from(case.width), u64::from(case.height));
                let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
                let data = rows.flat_map(|(x, y)| (0..3).map(move |c| sample(formula, x, y, c)));
                Picture::new(case.width, case.height, data.collect())
            }
        };
        assert_eq!((picture.width(), picture.height()), (case.width, case.height), "{}", case.name);
        let to = Preprocessing { width: case.to_width, height: case.to_height };
        let digest = image_id(resize(&picture, to).as_bytes()).to_string();
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
    exact: bool,
    tensor: String,
    /// 16-bit grey: what a reader sees that takes the high byte, as this one does and Pillow does not.
    high_byte: Option<String>,
}

#[test]
fn decoding_equals_pillow_and_lossy_formats_within_their_decoders_differences() {
    /// Decoders of JPEG and lossy `WebP` round differently; on these files by this much at most.
    const LEVELS: u8 = 4;
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
        if !size || distance > if case.exact { 0 } else { LEVELS } {
            wrong.push((case.file, distance));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[derive(Deserialize)]
struct TokenizerGoldens {
    vocabulary_size: usize,
    encode: Vec<Encoding>,
    plain_special: Vec<Encoding>,
    decode: Vec<Decoding>,
}

#[derive(Deserialize)]
struct Encoding {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoding {
    ids: Vec<u32>,
    text: String,
    clean: String,
}

/// The text at once, and in pieces behind a prompt of two ids.
fn decoded(tokenizer: &Tokenizer, ids: &[u32]) -> [String; 2] {
    let (prompt, new) = ids.split_at(ids.len().min(2));
    let mut detokenizer = tokenizer.detokenizer(prompt);
    let mut pieces: String = new.iter().map(|&id| detokenizer.push(id)).collect();
    pieces += &detokenizer.finish();
    [tokenizer.decode(ids), pieces]
}

#[test]
fn tokenizing_equals_transformers() {
    let goldens: TokenizerGoldens = read_json("reference/tokenizer.json");
    let load = |name| Tokenizer::load(&fixture(name), &InputSettings::default()).unwrap();
    // One reads tokenizer.json, one vocab.txt alone, one cleans up.
    let (json, vocabulary, cleaning) =
        (load("caption-varied"), load("vqa-varied"), load("caption-talkative"));
    for tokenizer in [&json, &vocabulary] {
        assert_eq!(tokenizer.vocab_size(), goldens.vocabulary_size);
        for case in goldens.encode.iter().chain(&goldens.plain_special) {
            // The reference drops control characters; here they are refused.
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
    sequences: Vec<CaptionText>,
}

#[derive(Deserialize)]
struct CaptionText {
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
            for CaptionText { new_ids, text, continuation } in case.sequences {
                assert_eq!(tokenizer.decode(&[prompt, &new_ids].concat()), text);
                assert_eq!(tokenizer.decode_continuation(prompt, &new_ids), continuation);
            }
        }
    }
}
