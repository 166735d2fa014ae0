//! The options and added tokens of a tokenizer, merged from all files that set them, with the precedence of
//! transformers. Source: `PreTrainedTokenizerBase._from_pretrained` (`transformers/tokenization_utils_base.py`, 5.23).

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::entries::{EXTRA, set};
use super::files::{ADDED_TOKENS, CONFIG, Files, SPECIAL_TOKENS_MAP, TOKENIZER};
use super::token::{Given, Place, Token};
use crate::document::DocumentError;

/// Names of the standard special tokens, which every tokenizer has.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The older name of the key [`EXTRA`].
const ADDITIONAL: &str = "additional_special_tokens";
const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";

/// An option's value, and the file and field that it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) given: Given,
    pub(super) place: Place,
}

impl Entry {
    /// Creates the entry for the value of `key` in `file`.
    pub(super) fn new(file: PathBuf, key: &str, value: Value) -> Self {
        Self { given: Given::from(value), place: Place { file, field: key.to_owned() } }
    }

    pub(super) fn refuse(&self, accepted: &str) -> DocumentError {
        self.place.refuse(&self.given.shown(), accepted)
    }

    /// True if Python treats the value as false.
    fn is_false(&self) -> bool {
        match &self.given {
            Given::Json(Value::Null | Value::Bool(false)) => true,
            Given::Json(Value::String(text)) => text.is_empty(),
            Given::Json(Value::Object(object)) => object.is_empty(),
            Given::Json(Value::Number(number)) => number.as_f64() == Some(0.0),
            Given::List(items) => items.is_empty(),
            Given::Json(Value::Bool(true) | Value::Array(_)) | Given::Token(_) => false,
        }
    }
}

/// Options and added tokens, merged from all files.
#[derive(Debug)]
pub(super) struct Options {
    /// Options by key, in the order in which the files first set them.
    entries: Vec<(String, Entry)>,
    /// Tokens under names that the checkpoint itself defines, such as `image_token`.
    pub(super) own: Vec<(String, Entry)>,
    /// Added tokens with the ids that the files give them. These ids are used only to sort the tokens.
    added: Vec<(f64, Token)>,
    /// Every added token by its text, including those that a later token with the same id has replaced in `added`.
    by_content: Vec<(String, Token)>,
}

impl Options {
    pub(super) fn collect(files: &Files) -> Result<Self, DocumentError> {
        let mut options = Self {
            entries: Vec::new(),
            own: Vec::new(),
            added: Vec::new(),
            by_content: Vec::new(),
        };
        options.take_config(files);
        if let Some(decoder) = options.get(ADDED_TOKENS_DECODER).cloned() {
            options.take_decoder(&decoder)?;
        } else {
            options.take_special_tokens_map(files)?;
            options.take_added_tokens(files)?;
            options.take_tokenizer(files)?;
        }
        for (_, entry) in options.entries.iter_mut().chain(&mut options.own) {
            typed(&mut entry.given, &entry.place)?;
        }
        options.name_added_tokens();
        Ok(options)
    }

    /// Returns the value of a key, which may be `null`, or `None` if no file sets the key.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, entry)| entry)
    }

    /// Returns every key with its value, in file order.
    pub(super) fn entries(&self) -> &[(String, Entry)] {
        &self.entries
    }

    /// Sets `key` to the value of `entry`, unless it is already set.
    pub(super) fn default(&mut self, key: &str, entry: impl FnOnce() -> Entry) {
        if self.get(key).is_none() {
            self.entries.push((key.to_owned(), entry()));
        }
    }

    /// Returns the added tokens, sorted by the ids that the files give them.
    pub(super) fn added(&self) -> Vec<Token> {
        let mut added: Vec<&(f64, Token)> = self.added.iter().collect();
        added.sort_by(|a, b| a.0.total_cmp(&b.0));
        added.into_iter().map(|(_, token)| token.clone()).collect()
    }

    /// Renames the key `additional_special_tokens` to its current name [`EXTRA`], unless `blocked` returns true for the
    /// existing value of [`EXTRA`].
    pub(super) fn rename_additional(&mut self, blocked: impl FnOnce(&Entry) -> bool) {
        if self.get(EXTRA).is_some_and(blocked) {
            return;
        }
        if let Some(entry) = self.remove(ADDITIONAL) {
            set(&mut self.entries, EXTRA, entry);
        }
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        Some(self.entries.remove(at).1)
    }

    fn put(&mut self, id: f64, token: Token) {
        set(&mut self.by_content, &token.content, token.clone());
        match self.added.iter_mut().find(|(known, _)| known.total_cmp(&id).is_eq()) {
            Some((_, place)) => *place = token,
            None => self.added.push((id, token)),
        }
    }

    fn take_config(&mut self, files: &Files) {
        let entry = |key: &str, value: &Value| Entry::new(files.path(CONFIG), key, value.clone());
        for (key, value) in &files.config.entries {
            self.entries.push((key.clone(), entry(key, value)));
        }
        self.rename_additional(|extra| !extra.is_false());
        let is_own = |key: &str, entry: &Entry| {
            is_own_name(key) && matches!(entry.given, Given::Json(Value::String(_)))
        };
        let entries = std::mem::take(&mut self.entries);
        let (own, entries) = entries.into_iter().partition(|(key, entry)| is_own(key, entry));
        (self.own, self.entries) = (own, entries);
        let named = files.config.extra.iter().map(|(key, value)| (key, entry(key, value)));
        self.take_named_extra(named.collect());
    }

    /// If `extra_special_tokens` is an object, removes it and adds the tokens that it names (`named`) to those that the
    /// checkpoint itself defines (`own`).
    fn take_named_extra(&mut self, named: Vec<(&String, Entry)>) {
        let is_object = |entry: &Entry| matches!(entry.given, Given::Json(Value::Object(_)));
        if !self.get(EXTRA).is_some_and(is_object) {
            return;
        }
        self.remove(EXTRA);
        for (key, entry) in named {
            set(&mut self.own, key, entry);
        }
    }

    /// Adds the tokens that `tokenizer_config.json` lists in `added_tokens_decoder`. If this list exists, the added
    /// tokens of other files are ignored.
    fn take_decoder(&mut self, decoder: &Entry) -> Result<(), DocumentError> {
        let Given::Json(Value::Object(tokens)) = &decoder.given else {
            return Err(decoder.refuse("an object that maps ids to tokens"));
        };
        for (id, token) in tokens {
            let place =
                Place { field: format!("{}.{id}", decoder.place.field), ..decoder.place.clone() };
            let Ok(id) = id.trim().parse::<i64>() else {
                return Err(place.refuse(token, "a token whose key is a whole number"));
            };
            let Value::Object(object) = token else {
                return Err(place.refuse(token, "an object with \"content\""));
            };
            self.put(id as f64, Token::read(object, None, &place)?);
        }
        Ok(())
    }

    /// Sets the options of `special_tokens_map.json`, which take precedence over those of earlier files.
    fn take_special_tokens_map(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(map) = &files.special_tokens_map else { return Ok(()) };
        let file = || files.path(SPECIAL_TOKENS_MAP);
        for (key, value) in &map.entries {
            let place = Place { file: file(), field: key.clone() };
            let given = match (value, key.as_str()) {
                (Value::Array(items), EXTRA) => self.with_extra(items, &place)?,
                (Value::Object(_), EXTRA) => Given::Json(value.clone()),
                (Value::Object(token), _) => Given::Token(Token::read(token, Some(true), &place)?),
                (other, _) => Given::from(other.clone()),
            };
            set(&mut self.entries, key, Entry { given, place });
        }
        let entry = |key: &str, value: &Value| Entry::new(file(), key, value.clone());
        let named = map.extra.iter().map(|(key, value)| (key, entry(key, value)));
        self.take_named_extra(named.collect());
        Ok(())
    }

    /// Returns the extra tokens so far, followed by those of `items` that are not among them.
    fn with_extra(&self, items: &[Value], place: &Place) -> Result<Given, DocumentError> {
        let mut extra = match self.get(EXTRA).map(|entry| &entry.given) {
            Some(Given::List(known)) => known.clone(),
            _ => Vec::new(),
        };
        for item in items {
            let given = match item.as_object() {
                Some(token) if token.contains_key("special") => {
                    return Err(place.refuse(item, "strings, and objects without \"special\""));
                }
                Some(token) => Given::Token(Token::read(token, Some(true), place)?),
                None => Given::from(item.clone()),
            };
            if !extra.contains(&given) {
                extra.push(given);
            }
        }
        Ok(Given::List(extra))
    }

    /// Adds the tokens of `added_tokens.json`, which contains texts and ids. A token is special if an earlier file
    /// names it as a special token.
    fn take_added_tokens(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(tokens) = &files.added_tokens else { return Ok(()) };
        let mut special: Vec<String> = Vec::new();
        let named = NAMES.into_iter().filter_map(|name| self.get(name));
        special.extend(named.filter_map(|entry| entry.given.text()).map(str::to_owned));
        if let Some(Given::List(items)) = self.get(EXTRA).map(|entry| &entry.given) {
            special.extend(items.iter().filter_map(Given::text).map(str::to_owned));
        }
        for (content, id) in &tokens.entries {
            let Some(id) = id.as_f64() else {
                let place = Place { file: files.path(ADDED_TOKENS), field: content.clone() };
                return Err(place.refuse(id, "an id"));
            };
            self.put(id, Token::plain(content, special.contains(content)));
        }
        Ok(())
    }

    /// Adds the added tokens of `tokenizer.json`, with their flags.
    fn take_tokenizer(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(tokenizer) = &files.tokenizer else { return Ok(()) };
        let place = Place { file: files.path(TOKENIZER), field: "added_tokens".to_owned() };
        let accepted = "a list of objects with id and content";
        let Some(Value::Array(tokens)) = tokenizer.get("added_tokens") else {
            let found = tokenizer.get("added_tokens");
            return Err(DocumentError::field(place.file, place.field, found, accepted));
        };
        for token in tokens {
            let object = token.as_object();
            let id = object.and_then(|object| object.get("id")).and_then(Value::as_f64);
            let (Some(object), Some(id)) = (object, id) else {
                return Err(place.refuse(token, accepted));
            };
            self.put(id, Token::read(object, None, &place)?);
        }
        Ok(())
    }

    /// If an added token has the same text as a standard special token, uses the added token, with its flags, as that
    /// special token.
    fn name_added_tokens(&mut self) {
        for (key, entry) in &mut self.entries {
            let text = entry.given.text().filter(|_| NAMES.contains(&key.as_str()));
            let found =
                text.and_then(|text| self.by_content.iter().find(|(content, _)| content == text));
            if let Some((_, token)) = found {
                entry.given = Given::Token(token.clone());
            }
        }
    }
}

/// True if `key` names a token that is not one of the standard [`NAMES`], such as `image_token`.
pub(super) fn is_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMES.contains(&key)
}

/// Converts JSON objects with `"__type": "AddedToken"` to tokens, also inside lists.
fn typed(given: &mut Given, place: &Place) -> Result<(), DocumentError> {
    let is_token =
        |object: &Map<String, Value>| object.get("__type").is_some_and(|kind| kind == "AddedToken");
    match given {
        Given::Json(Value::Object(object)) if is_token(object) => {
            *given = Given::Token(Token::read(object, None, place)?);
            Ok(())
        }
        Given::List(items) => items.iter_mut().try_for_each(|item| typed(item, place)),
        Given::Json(_) | Given::Token(_) => Ok(()),
    }
}
