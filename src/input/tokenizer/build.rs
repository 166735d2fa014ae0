//! Builds a tokenizer from the files of a checkpoint. Sources (transformers 5.23): `models/auto/tokenization_auto.py`
//! (selection of the class), `models/bert/tokenization_bert.py`, `tokenization_utils_tokenizers.py` (added tokens).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordpiece::{WordPiece, WordPieceBuilder};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, DecoderWrapper, NormalizedString, Normalizer as _, decoders};

use super::entries::{EXTRA, set};
use super::files::{CONFIG, Files, TOKENIZER, VOCABULARY};
use super::options::{NAMES, Options, TokenizerOption, is_own_name};
use super::token::{DeclaredToken, OptionValue};
use super::word_pieces::WordPieces;
use crate::document::DocumentError;
use crate::input::TokenizerError;

/// A tokenizer with the ids and options that are needed to use it.
pub(super) struct Built {
    pub(super) inner: tokenizers::Tokenizer,
    /// The model of `inner`, for a faster search.
    pub(super) pieces: WordPieces,
    pub(super) cls: u32,
    pub(super) sep: u32,
    pub(super) clean_up: bool,
}

/// How a tokenizer class of transformers uses the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenizerClass {
    /// Uses only the vocabulary, from `tokenizer.json` or `vocab.txt`, and rebuilds everything else.
    Bert,
    /// Loads the complete `tokenizer.json` without changes.
    AsIs,
}

const BERT: [&str; 10] = [
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
];
/// transformers treats an unknown class name as `PreTrainedTokenizerFast`. Only these names are accepted here, because
/// others may denote classes that are not implemented.
const AS_IS: [&str; 5] =
    ["PreTrainedTokenizer", "TokenizersBackend", "BlipTokenizer", "BlipProcessor", ""];
const ACCEPTED_CLASSES: &str = "BertTokenizer or one of its aliases (such as DistilBertTokenizer), \
                                or PreTrainedTokenizerFast; with or without the suffix Fast";

pub(super) fn build(files: &Files) -> Result<Built, TokenizerError> {
    let class = class(files)?;
    let mut options = Options::collect(files)?;
    let (mut inner, path) = match class {
        TokenizerClass::Bert => {
            set_bert_names(&mut options, files);
            bert(files, &options)?
        }
        TokenizerClass::AsIs => as_is(files)?,
    };
    if !matches!(inner.get_decoder(), Some(DecoderWrapper::WordPiece(_))) {
        let problem = "has a decoder other than WordPiece, the only one that BLIP uses";
        return Err(invalid(&path, problem));
    }
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|_| invalid(&path, BROKEN))?;
    options.rename_additional(|_| true);
    let names = names(&options)?;
    let added = added_tokens(&inner, &options, &names)?;
    check_normalised(&inner, &added, &path)?;
    inner.add_tokens(added).map_err(|_| invalid(&path, BROKEN))?;
    inner.set_encode_special_tokens(true);
    let pieces = word_pieces(&inner, &path)?;
    let (cls, sep) = match class {
        TokenizerClass::Bert => {
            (id(&inner, &names, "cls_token", files)?, id(&inner, &names, "sep_token", files)?)
        }
        TokenizerClass::AsIs => frame(&inner, &path)?,
    };
    let clean_up = switch(&options, "clean_up_tokenization_spaces", true)?.unwrap_or(false);
    Ok(Built { inner, pieces, cls, sep, clean_up })
}

const BROKEN: &str = "is not a valid tokenizer; save it again with tokenizer.save_pretrained of a \
                      current transformers release";

fn class(files: &Files) -> Result<TokenizerClass, DocumentError> {
    let declared = files.config.entries.iter().find(|(key, _)| key == "tokenizer_class");
    let declared = declared.map(|(_, value)| (CONFIG, value)).filter(|(_, value)| !value.is_null());
    let of_model = files.model_class.as_ref().map(|value| ("config.json", value));
    let Some((file, value)) = declared.or(of_model.filter(|(_, value)| !value.is_null())) else {
        return Ok(TokenizerClass::Bert);
    };
    let refuse = |accepted| {
        let field = "tokenizer_class".to_owned();
        DocumentError::field(files.path(file), field, Some(value), accepted)
    };
    let name = value.as_str().ok_or_else(|| refuse(ACCEPTED_CLASSES))?;
    let name = name.strip_suffix("Fast").unwrap_or(name);
    if BERT.contains(&name) {
        Ok(TokenizerClass::Bert)
    } else if !AS_IS.contains(&name) {
        Err(refuse(ACCEPTED_CLASSES))
    } else if files.tokenizer.is_none() {
        Err(refuse("BertTokenizer, because there is no tokenizer.json"))
    } else {
        Ok(TokenizerClass::AsIs)
    }
}

/// Sets special tokens that no file declares to the defaults of `BertTokenizer`, such as `[UNK]` for `unk_token`.
fn set_bert_names(options: &mut Options, files: &Files) {
    for name in ["unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        options.default(name, || {
            let text = format!("[{}]", name.trim_end_matches("_token").to_uppercase());
            TokenizerOption::new(files.path(CONFIG), name, Value::String(text))
        });
    }
}

/// Builds a `BertTokenizer` with the vocabulary of `tokenizer.json`, or of `vocab.txt` if there is no `tokenizer.json`.
/// Returns the tokenizer and the path of the file that was used.
fn bert(
    files: &Files,
    options: &Options,
) -> Result<(tokenizers::Tokenizer, PathBuf), TokenizerError> {
    let (path, vocabulary) = vocabulary(files)?;
    let unknown = options.get("unk_token").and_then(|entry| entry.value.text());
    let Some(unknown) = unknown.filter(|text| !text.is_empty()) else {
        return Err(refuse_name(options.get("unk_token"), "unk_token", files).into());
    };
    let model = vocabulary.unk_token(unknown.to_owned()).build();
    let mut inner = tokenizers::Tokenizer::new(model.map_err(|_| invalid(&path, BROKEN))?);
    let normaliser = BertNormalizer::new(
        true,
        switch(options, "tokenize_chinese_chars", false)?.unwrap_or(true),
        switch(options, "strip_accents", true)?,
        switch(options, "do_lower_case", false)?.unwrap_or(true),
    );
    inner.with_normalizer(Some(normaliser)).map_err(|_| invalid(&path, BROKEN))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
    Ok((inner, path))
}

fn vocabulary(files: &Files) -> Result<(PathBuf, WordPieceBuilder), TokenizerError> {
    if let Some(tokenizer) = &files.tokenizer {
        let path = files.path(TOKENIZER);
        // transformers also loads the rest of the file, without its vocabulary, so errors in the rest must be reported.
        let mut rest = tokenizer.clone();
        rest.insert("added_tokens".to_owned(), Value::Array(Vec::new()));
        let words = match rest.get_mut("model") {
            Some(Value::Object(model)) => {
                model.insert("vocab".to_owned(), Value::Object(Map::new()))
            }
            _ => None,
        };
        parse(&rest, &path)?;
        let words: Option<HashMap<String, u32, _>> = words.as_ref().and_then(|words| {
            let entry = |(word, id): (&String, &Value)| {
                Some((word.clone(), u32::try_from(id.as_u64()?).ok()?))
            };
            words.as_object()?.iter().map(entry).collect()
        });
        let Some(words) = words else {
            let problem = "has no model.vocab that maps words to ids, which BertTokenizer needs";
            return Err(invalid(&path, problem));
        };
        return Ok((path, WordPiece::builder().vocab(words)));
    }
    let Some(text) = &files.vocabulary else {
        return Err(TokenizerError::NotFound(files.directory.clone()));
    };
    let path = files.path(VOCABULARY);
    let words = WordPiece::read_bytes(text)
        .map_err(|_| invalid(&path, "is not UTF-8 text; copy or download it again"))?;
    Ok((path, WordPiece::builder().vocab(words)))
}

fn as_is(files: &Files) -> Result<(tokenizers::Tokenizer, PathBuf), TokenizerError> {
    let path = files.path(TOKENIZER);
    let Some(tokenizer) = &files.tokenizer else {
        return Err(TokenizerError::NotFound(files.directory.clone()));
    };
    Ok((parse(tokenizer, &path)?, path))
}

fn parse(
    document: &Map<String, Value>,
    path: &Path,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    serde_json::to_string(document)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(path, BROKEN))
}

fn invalid(path: &Path, problem: &str) -> TokenizerError {
    TokenizerError::Invalid { path: path.to_owned(), problem: problem.to_owned() }
}

/// Returns a boolean option, or `None` if no file sets it. If the argument `null` is true, a JSON `null` gives `None`
/// as well; otherwise it is rejected.
fn switch(options: &Options, key: &str, null: bool) -> Result<Option<bool>, DocumentError> {
    match options.get(key) {
        None => Ok(None),
        Some(entry) => match &entry.value {
            OptionValue::Json(Value::Bool(switch)) => Ok(Some(*switch)),
            OptionValue::Json(Value::Null) if null => Ok(None),
            OptionValue::Json(_) | OptionValue::Token(_) | OptionValue::List(_) => {
                Err(entry.refuse("true or false"))
            }
        },
    }
}

/// Returns the named special tokens. The standard names come first, followed by names that the checkpoint itself
/// defines, which may also redefine a standard name.
fn names(options: &Options) -> Result<Vec<(&str, &TokenizerOption)>, DocumentError> {
    let accepted = "a token: its text, or an object with \"__type\": \"AddedToken\"";
    let token = |entry: &TokenizerOption| entry.value.text().is_some();
    let mut named: Vec<(String, Option<(&str, &TokenizerOption)>)> = Vec::new();
    for name in NAMES {
        let entry = options.get(name).filter(|entry| !entry.value.is_null());
        set(&mut named, name, entry.map(|entry| (name, entry)));
    }
    let own_of_map =
        options.entries().iter().filter(|(key, entry)| is_own_name(key) && token(entry));
    for (key, entry) in own_of_map.chain(&options.own) {
        set(&mut named, key, Some((key.as_str(), entry)));
    }
    let named: Vec<(&str, &TokenizerOption)> =
        named.into_iter().filter_map(|(_, named)| named).collect();
    match named.iter().find(|(_, entry)| !token(entry)) {
        Some((_, entry)) => Err(entry.refuse(accepted)),
        None => Ok(named),
    }
}

/// Returns every token that must be added to the tokenizer. Their order determines the ids of tokens that are not in
/// the vocabulary.
fn added_tokens(
    inner: &tokenizers::Tokenizer,
    options: &Options,
    names: &[(&str, &TokenizerOption)],
) -> Result<Vec<AddedToken>, DocumentError> {
    let mut tokens: Vec<OptionValue> =
        options.added().into_iter().map(OptionValue::Token).collect();
    let mut known: Vec<String> =
        inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    known.extend(tokens.iter().filter_map(OptionValue::text).map(str::to_owned));
    let extra = match options.get(EXTRA) {
        None => &[][..],
        Some(entry) => match &entry.value {
            OptionValue::List(items) if items.iter().all(|item| item.text().is_some()) => items,
            OptionValue::Json(Value::Null) => &[][..],
            OptionValue::Json(_) | OptionValue::Token(_) | OptionValue::List(_) => {
                return Err(entry.refuse("a list of tokens: strings, or objects with \"__type\""));
            }
        },
    };
    for value in names.iter().map(|(_, entry)| &entry.value).chain(extra) {
        let is_known = known.iter().any(|text| Some(text.as_str()) == value.text());
        if !is_known && !tokens.contains(value) {
            tokens.push(value.clone());
        }
    }
    let is_name = |text: &str| names.iter().any(|(_, entry)| entry.value.text() == Some(text));
    Ok(tokens
        .iter()
        .filter_map(|value| match value {
            OptionValue::Token(token) => Some(token.to_added(is_name(&token.content))),
            OptionValue::Json(_) | OptionValue::List(_) => {
                value.text().map(|text| DeclaredToken::plain(text, true).to_added(false))
            }
        })
        .collect())
}

/// Rejects an added token that is matched in normalised text but is itself normalised to an empty string, because
/// `tokenizers` would panic on the first text.
fn check_normalised(
    inner: &tokenizers::Tokenizer,
    added: &[AddedToken],
    path: &Path,
) -> Result<(), TokenizerError> {
    let Some(normaliser) = inner.get_normalizer() else { return Ok(()) };
    let vanishes = |token: &&AddedToken| {
        let mut text = NormalizedString::from(token.content.as_str());
        let failed = normaliser.normalize(&mut text).is_err();
        token.normalized && !token.content.is_empty() && (failed || text.get().is_empty())
    };
    match added.iter().find(vanishes) {
        Some(token) => Err(invalid(
            path,
            &format!(
                "has the added token {:?}, which normalisation reduces to nothing; set its \"normalized\" to false",
                token.content
            ),
        )),
        None => Ok(()),
    }
}

/// Returns the pieces of the vocabulary. Rejects a tokenizer whose vocabulary lacks its unknown token, because such a
/// tokenizer would fail on the first text with an unknown word.
fn word_pieces(inner: &tokenizers::Tokenizer, path: &Path) -> Result<WordPieces, TokenizerError> {
    let ModelWrapper::WordPiece(model) = inner.get_model() else {
        return Err(invalid(path, "has a model other than WordPiece, the only one that BLIP uses"));
    };
    WordPieces::new(model).ok_or_else(|| {
        let unknown = &model.unk_token;
        invalid(path, &format!("has no vocabulary entry for the unknown token {unknown}"))
    })
}

/// Returns the id of the named token `name`. Every text begins or ends with this token.
fn id(
    inner: &tokenizers::Tokenizer,
    names: &[(&str, &TokenizerOption)],
    name: &str,
    files: &Files,
) -> Result<u32, DocumentError> {
    let entry = names.iter().find(|(known, _)| *known == name).map(|(_, entry)| *entry);
    let text = entry.and_then(|entry| entry.value.text());
    let text = text.filter(|text| !text.contains(char::is_whitespace));
    let id = text.and_then(|text| inner.token_to_id(text));
    id.ok_or_else(|| refuse_name(entry, name, files))
}

/// Returns the error for a missing or invalid named token. `entry` is the value of `name` in the files, or `None` if a
/// file sets `name` to null.
fn refuse_name(entry: Option<&TokenizerOption>, name: &str, files: &Files) -> DocumentError {
    let accepted = "a token that is a single word";
    let Some(entry) = entry else {
        let null = Some(&Value::Null);
        return DocumentError::field(files.path(CONFIG), name.to_owned(), null, accepted);
    };
    entry.refuse(accepted)
}

/// Returns the ids of the two tokens that the post-processor puts before and after a text. Rejects a tokenizer whose
/// post-processor does anything else.
fn frame(inner: &tokenizers::Tokenizer, path: &Path) -> Result<(u32, u32), TokenizerError> {
    let ids = |text: &str, special| {
        inner.encode_fast(text, special).map(|encoding| encoding.get_ids().to_vec())
    };
    if let (Ok(around_nothing), Ok(whole), Ok(plain)) =
        (ids("", true), ids("a", true), ids("a", false))
        && let [cls, sep] = around_nothing[..]
        && whole == [&[cls], &plain[..], &[sep]].concat()
    {
        return Ok((cls, sep));
    }
    Err(invalid(
        path,
        "has no post_processor that puts one token before and one after a text, as BERT's does",
    ))
}
