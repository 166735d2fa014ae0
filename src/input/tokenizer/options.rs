//! The options and added tokens of a tokenizer, merged from all files that set them, with the precedence of
//! transformers. Source: `PreTrainedTokenizerBase._from_pretrained` (`transformers/tokenization_utils_base.py`, 5.23).

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::entries::{EXTRA, set};
use super::files::{ADDED_TOKENS, CONFIG, Files, SPECIAL_TOKENS_MAP, TOKENIZER};
use super::token::{DeclaredToken, FieldOrigin, OptionValue};
use crate::document::DocumentError;

/// Names of the standard special tokens, which every tokenizer has.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The older name of the key [`EXTRA`].
const ADDITIONAL: &str = "additional_special_tokens";
const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";

/// An option's value, and the file and field that it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenizerOption {
    pub(super) value: OptionValue,
    pub(super) origin: FieldOrigin,
}

impl TokenizerOption {
    /// Creates the entry for the value of `key` in `file`.
    pub(super) fn new(file: PathBuf, key: &str, value: Value) -> Self {
        Self {
            value: OptionValue::from(value),
            origin: FieldOrigin { file, field: key.to_owned() },
        }
    }

    pub(super) fn refuse(&self, accepted: &str) -> DocumentError {
        self.origin.refuse(&self.value.shown(), accepted)
    }

    /// True if Python treats the value as false.
    fn is_false(&self) -> bool {
        match &self.value {
            OptionValue::Json(Value::Null | Value::Bool(false)) => true,
            OptionValue::Json(Value::String(text)) => text.is_empty(),
            OptionValue::Json(Value::Object(object)) => object.is_empty(),
            OptionValue::Json(Value::Number(number)) => number.as_f64() == Some(0.0),
            OptionValue::List(items) => items.is_empty(),
            OptionValue::Json(Value::Bool(true) | Value::Array(_)) | OptionValue::Token(_) => false,
        }
    }
}

/// Options and added tokens, merged from all files.
#[derive(Debug)]
pub(super) struct Options {
    /// Options by key, in the order in which the files first set them.
    entries: Vec<(String, TokenizerOption)>,
    /// Tokens under names that the checkpoint itself defines, such as `image_token`.
    pub(super) own: Vec<(String, TokenizerOption)>,
    /// Added tokens with the ids that the files assign to them. These ids are used only to sort the tokens.
    added: Vec<(f64, DeclaredToken)>,
    /// Every added token by its text, including those that a later token with the same id has replaced in `added`.
    by_content: Vec<(String, DeclaredToken)>,
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
            typed(&mut entry.value, &entry.origin)?;
        }
        options.name_added_tokens();
        Ok(options)
    }

    /// Returns the value of a key, even if it is `null`; `None` if no file sets the key.
    pub(super) fn get(&self, key: &str) -> Option<&TokenizerOption> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, entry)| entry)
    }

    /// Returns every key with its value, in file order.
    pub(super) fn entries(&self) -> &[(String, TokenizerOption)] {
        &self.entries
    }

    /// Sets `key` to the value of `entry`, unless it is already set.
    pub(super) fn default(&mut self, key: &str, entry: impl FnOnce() -> TokenizerOption) {
        if self.get(key).is_none() {
            self.entries.push((key.to_owned(), entry()));
        }
    }

    /// Returns the added tokens, sorted by the ids that the files assign to them.
    pub(super) fn added(&self) -> Vec<DeclaredToken> {
        let mut added: Vec<&(f64, DeclaredToken)> = self.added.iter().collect();
        added.sort_by(|a, b| a.0.total_cmp(&b.0));
        added.into_iter().map(|(_, token)| token.clone()).collect()
    }

    /// Renames the key `additional_special_tokens` to its current name [`EXTRA`], unless `blocked` returns true for the
    /// existing value of [`EXTRA`].
    pub(super) fn rename_additional(&mut self, blocked: impl FnOnce(&TokenizerOption) -> bool) {
        if self.get(EXTRA).is_some_and(blocked) {
            return;
        }
        if let Some(entry) = self.remove(ADDITIONAL) {
            set(&mut self.entries, EXTRA, entry);
        }
    }

    fn remove(&mut self, key: &str) -> Option<TokenizerOption> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        Some(self.entries.remove(at).1)
    }

    fn put(&mut self, id: f64, token: DeclaredToken) {
        set(&mut self.by_content, &token.content, token.clone());
        match self.added.iter_mut().find(|(known, _)| known.total_cmp(&id).is_eq()) {
            Some((_, replaced)) => *replaced = token,
            None => self.added.push((id, token)),
        }
    }

    fn take_config(&mut self, files: &Files) {
        let entry =
            |key: &str, value: &Value| TokenizerOption::new(files.path(CONFIG), key, value.clone());
        for (key, value) in &files.config.entries {
            self.entries.push((key.clone(), entry(key, value)));
        }
        self.rename_additional(|extra| !extra.is_false());
        let is_own = |key: &str, entry: &TokenizerOption| {
            is_own_name(key) && matches!(entry.value, OptionValue::Json(Value::String(_)))
        };
        let entries = std::mem::take(&mut self.entries);
        let (own, entries) = entries.into_iter().partition(|(key, entry)| is_own(key, entry));
        (self.own, self.entries) = (own, entries);
        let named = files.config.extra.iter().map(|(key, value)| (key, entry(key, value)));
        self.take_named_extra(named.collect());
    }

    /// If `extra_special_tokens` is an object, removes it and adds the tokens that it names (`named`) to those that the
    /// checkpoint itself defines (`own`).
    fn take_named_extra(&mut self, named: Vec<(&String, TokenizerOption)>) {
        let is_object =
            |entry: &TokenizerOption| matches!(entry.value, OptionValue::Json(Value::Object(_)));
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
    fn take_decoder(&mut self, decoder: &TokenizerOption) -> Result<(), DocumentError> {
        let OptionValue::Json(Value::Object(tokens)) = &decoder.value else {
            return Err(decoder.refuse("an object that maps ids to tokens"));
        };
        for (id, token) in tokens {
            let origin = FieldOrigin {
                field: format!("{}.{id}", decoder.origin.field),
                ..decoder.origin.clone()
            };
            let Ok(id) = id.trim().parse::<i64>() else {
                return Err(origin.refuse(token, "a token whose key is a whole number"));
            };
            let Value::Object(object) = token else {
                return Err(origin.refuse(token, "an object with \"content\""));
            };
            self.put(id as f64, DeclaredToken::read(object, None, &origin)?);
        }
        Ok(())
    }

    /// Sets the options of `special_tokens_map.json`, which take precedence over those of earlier files.
    fn take_special_tokens_map(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(map) = &files.special_tokens_map else { return Ok(()) };
        let file = || files.path(SPECIAL_TOKENS_MAP);
        for (key, value) in &map.entries {
            let origin = FieldOrigin { file: file(), field: key.clone() };
            let value = match (value, key.as_str()) {
                (Value::Array(items), EXTRA) => self.with_extra(items, &origin)?,
                (Value::Object(_), EXTRA) => OptionValue::Json(value.clone()),
                (Value::Object(token), _) => {
                    OptionValue::Token(DeclaredToken::read(token, Some(true), &origin)?)
                }
                (other, _) => OptionValue::from(other.clone()),
            };
            set(&mut self.entries, key, TokenizerOption { value, origin });
        }
        let entry = |key: &str, value: &Value| TokenizerOption::new(file(), key, value.clone());
        let named = map.extra.iter().map(|(key, value)| (key, entry(key, value)));
        self.take_named_extra(named.collect());
        Ok(())
    }

    /// Returns the tokens that [`EXTRA`] lists so far, followed by the tokens of `items` that are not among them.
    fn with_extra(
        &self,
        items: &[Value],
        origin: &FieldOrigin,
    ) -> Result<OptionValue, DocumentError> {
        let mut extra = match self.get(EXTRA).map(|entry| &entry.value) {
            Some(OptionValue::List(known)) => known.clone(),
            _ => Vec::new(),
        };
        for item in items {
            let value = match item.as_object() {
                Some(token) if token.contains_key("special") => {
                    return Err(origin.refuse(item, "strings, and objects without \"special\""));
                }
                Some(token) => OptionValue::Token(DeclaredToken::read(token, Some(true), origin)?),
                None => OptionValue::from(item.clone()),
            };
            if !extra.contains(&value) {
                extra.push(value);
            }
        }
        Ok(OptionValue::List(extra))
    }

    /// Adds the tokens of `added_tokens.json`, which maps texts to ids. A token is special if an earlier file names it
    /// as a special token.
    fn take_added_tokens(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(tokens) = &files.added_tokens else { return Ok(()) };
        let mut special: Vec<String> = Vec::new();
        let named = NAMES.into_iter().filter_map(|name| self.get(name));
        special.extend(named.filter_map(|entry| entry.value.text()).map(str::to_owned));
        if let Some(OptionValue::List(items)) = self.get(EXTRA).map(|entry| &entry.value) {
            special.extend(items.iter().filter_map(OptionValue::text).map(str::to_owned));
        }
        for (content, id) in &tokens.entries {
            let Some(id) = id.as_f64() else {
                let origin = FieldOrigin { file: files.path(ADDED_TOKENS), field: content.clone() };
                return Err(origin.refuse(id, "an id"));
            };
            self.put(id, DeclaredToken::plain(content, special.contains(content)));
        }
        Ok(())
    }

    /// Adds the added tokens of `tokenizer.json`, with their flags.
    fn take_tokenizer(&mut self, files: &Files) -> Result<(), DocumentError> {
        let Some(tokenizer) = &files.tokenizer else { return Ok(()) };
        let origin = FieldOrigin { file: files.path(TOKENIZER), field: "added_tokens".to_owned() };
        let accepted = "a list of objects with id and content";
        let Some(Value::Array(tokens)) = tokenizer.get("added_tokens") else {
            let found = tokenizer.get("added_tokens");
            return Err(DocumentError::field(origin.file, origin.field, found, accepted));
        };
        for token in tokens {
            let object = token.as_object();
            let id = object.and_then(|object| object.get("id")).and_then(Value::as_f64);
            let (Some(object), Some(id)) = (object, id) else {
                return Err(origin.refuse(token, accepted));
            };
            self.put(id, DeclaredToken::read(object, None, &origin)?);
        }
        Ok(())
    }

    /// Gives each standard special token the flags of the added token with the same text, if there is one.
    fn name_added_tokens(&mut self) {
        for (key, entry) in &mut self.entries {
            let text = entry.value.text().filter(|_| NAMES.contains(&key.as_str()));
            let found =
                text.and_then(|text| self.by_content.iter().find(|(content, _)| content == text));
            if let Some((_, token)) = found {
                entry.value = OptionValue::Token(token.clone());
            }
        }
    }
}

/// True if `key` names a token that is not one of the standard [`NAMES`], such as `image_token`.
pub(super) fn is_own_name(key: &str) -> bool {
    key.ends_with("_token") && !NAMES.contains(&key)
}

/// Converts JSON objects with `"__type": "AddedToken"` to tokens, also inside lists.
fn typed(value: &mut OptionValue, origin: &FieldOrigin) -> Result<(), DocumentError> {
    let is_token =
        |object: &Map<String, Value>| object.get("__type").is_some_and(|kind| kind == "AddedToken");
    match value {
        OptionValue::Json(Value::Object(object)) if is_token(object) => {
            *value = OptionValue::Token(DeclaredToken::read(object, None, origin)?);
            Ok(())
        }
        OptionValue::List(items) => items.iter_mut().try_for_each(|item| typed(item, origin)),
        OptionValue::Json(_) | OptionValue::Token(_) => Ok(()),
    }
}
