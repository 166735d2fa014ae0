//! Compares the tokenizers that are built from many combinations of files with those of transformers.
//! `tests/fixtures/make/tokenizer_files.py` writes the fixtures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Tokenizer, TokenizerError};
use crate::input::InputSettings;
use crate::task::StopStrings;

/// Cases that are rejected here although transformers loads them. The reason is, for example, that the start or end
/// token is missing, that the tokenizer would fail on the first unknown word, or that its class is not implemented.
const REFUSED_HERE: [&str; 17] = [
    "added_tokens.json, ids as strings",
    "added_tokens.json, a token that is normalised to nothing",
    "unk_token missing from the vocabulary",
    "unk_token missing from the vocabulary, tokenizer.json",
    "cls_token and sep_token are null",
    "cls_token is null, tokenizer.json",
    "cls_token is empty",
    "unk_token is null",
    "ConvBertTokenizer over another tokenizer.json",
    "ConvBertTokenizer over vocab.txt",
    "PreTrainedTokenizerFast over tokenizer.json with no decoder",
    "PreTrainedTokenizerFast over tokenizer.json with a post-processor without [SEP]",
    "PreTrainedTokenizerFast over tokenizer.json with no post-processor",
    "no vocabulary, BertTokenizer",
    "no vocabulary but added_tokens.json",
    "vocab.txt without special tokens",
    "vocab.txt, empty",
];

/// Cases with an option that transformers rejects. They load here, because the option has no effect on this server.
const READ_HERE: [&str; 2] = ["an unknown side of padding", "an option that is named as a method"];

#[derive(Deserialize)]
struct FileSetGoldens {
    texts: Vec<String>,
    lists: Vec<Vec<u32>>,
    cases: Vec<FileSetCase>,
}

#[derive(Deserialize)]
struct FileSetCase {
    name: String,
    /// Which vocabulary files of the fixture are in the directory: `vocab.txt`, `tokenizer.json` or `both`. Any other
    /// value means none.
    base: String,
    files: BTreeMap<String, String>,
    /// Values that replace those in the fixture's `tokenizer.json`, by key.
    edit: BTreeMap<String, Value>,
    #[serde(default)]
    drop: Vec<String>,
    refused: Option<String>,
    #[serde(flatten)]
    expected: Option<ExpectedTokenizer>,
}

#[derive(Deserialize)]
struct ExpectedTokenizer {
    tokens: usize,
    ids: Vec<Option<Vec<u32>>>,
    /// Expected ids by index of the text, where they differ from `ids` because this server treats special tokens in a
    /// text as plain text.
    #[serde(default)]
    plain_ids: BTreeMap<String, Option<Vec<u32>>>,
    decoded: Vec<String>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Resolves a path such as `pre_tokenizer` or `model.unk_token` in a `tokenizer.json` to an object and a key in it.
fn place<'a>(
    document: &'a mut Map<String, Value>,
    key: &str,
) -> (&'a mut Map<String, Value>, String) {
    match key.strip_prefix("model.") {
        Some(key) => (document["model"].as_object_mut().unwrap(), key.to_owned()),
        None => (document, key.to_owned()),
    }
}

fn load(case: &FileSetCase) -> Result<Tokenizer, TokenizerError> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    if matches!(&*case.base, "vocab.txt" | "both") {
        write("vocab.txt", &fs::read(fixture("caption-varied/vocab.txt")).unwrap());
    }
    if matches!(&*case.base, "tokenizer.json" | "both") {
        let file = fs::read(fixture("caption-varied/tokenizer.json")).unwrap();
        let mut document: Map<String, Value> = serde_json::from_slice(&file).unwrap();
        for (key, value) in &case.edit {
            let (object, key) = place(&mut document, key);
            object.insert(key, value.clone());
        }
        for key in &case.drop {
            let (object, key) = place(&mut document, key);
            object.remove(&key).unwrap();
        }
        write("tokenizer.json", &serde_json::to_vec(&document).unwrap());
    }
    for (name, text) in &case.files {
        write(name, text.as_bytes());
    }
    Tokenizer::load(directory.path(), &InputSettings::default())
}

#[test]
fn tokenizers_of_every_combination_of_files_equal_those_of_transformers() {
    let goldens = fs::read(fixture("reference/tokenizer_files.json")).unwrap();
    let FileSetGoldens { texts, lists, cases } = serde_json::from_slice(&goldens).unwrap();
    assert!(cases.len() >= 280);
    let (mut wrong, mut refused_here, mut read_here) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let (tokenizer, expected) = match (load(case), &case.expected) {
            (Ok(tokenizer), Some(expected)) => (tokenizer, expected),
            (Ok(_), None) => {
                assert!(case.refused.is_some());
                read_here.push(&*case.name);
                continue;
            }
            (Err(error), Some(_)) => {
                assert!(error.is_content(), "{error}");
                refused_here.push(&*case.name);
                continue;
            }
            (Err(_), None) => continue,
        };
        let mut differ = |what: &str, found: String, expected: String| {
            if found != expected {
                wrong.push(format!("{}: {what}: {found}, expected {expected}", case.name));
            }
        };
        let tokens = tokenizer.inner.get_vocab_size(true);
        differ("tokens", tokens.to_string(), expected.tokens.to_string());
        for (index, text) in texts.iter().enumerate() {
            let plain = expected.plain_ids.get(&index.to_string());
            let ids = plain.unwrap_or(&expected.ids[index]);
            let found = tokenizer.encode(text).ok().map(|ids| ids.as_slice().to_vec());
            differ(text, format!("{found:?}"), format!("{ids:?}"));
        }
        for (list, text) in lists.iter().zip(&expected.decoded) {
            differ(&format!("{list:?}"), tokenizer.decode(list), text.clone());
        }
    }
    assert_eq!(refused_here, REFUSED_HERE);
    assert_eq!(read_here, READ_HERE);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Deserialize)]
struct StopGoldens {
    stop_strings: Vec<StopGolden>,
}

#[derive(Deserialize)]
struct StopGolden {
    strings: Vec<Arc<str>>,
    ids: Vec<u32>,
    stops: bool,
}

/// `tests/fixtures/make/parameters.py` writes the fixture.
#[test]
fn strings_end_a_text_where_they_do_in_the_reference() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let json = fs::read(fixtures.join("reference/parameters.json")).unwrap();
    let goldens: StopGoldens = serde_json::from_slice(&json).unwrap();
    assert!(goldens.stop_strings.len() >= 80);
    let tokenizer =
        Tokenizer::load(&fixtures.join("vqa-talkative"), &InputSettings::default()).unwrap();
    for StopGolden { strings, ids, stops } in goldens.stop_strings {
        let what = format!("{strings:?} in {ids:?}");
        let strings = StopStrings::new(strings.into(), tokenizer.token_texts());
        assert_eq!(strings.end_the_text(ids.into_iter().rev()), stops, "{what}");
    }
}
