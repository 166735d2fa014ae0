//! Text to ids and back, as `transformers` does it with the files of one checkpoint.
//!
//! Deviation, on purpose: special tokens inside a client's text are plain text (`[SEP]` becomes the ids of its
//! characters), so that no text can end itself or speak for the model.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, DecoderWrapper, decoders};

use super::{Detokenizer, InputError, InputSettings, TokenizerError, check_text};
use crate::task::TokenIds;

/// How a file begins that stands for one in Git LFS.
const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/v1";

/// A checkpoint's tokenizer. Shared by every thread behind an `Arc`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    settings: InputSettings,
    clean_up: bool,
    cls: u32,
    sep: u32,
}

/// The keys of `tokenizer_config.json` that matter.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    clean_up_tokenization_spaces: Option<bool>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    cls_token: Option<SpecialToken>,
    sep_token: Option<SpecialToken>,
}

impl TokenizerConfig {
    /// True when the class makes its normaliser from this file: a BERT tokenizer, which BLIP's processor takes for
    /// granted where none is named. Other classes run the `tokenizer.json` as it is.
    fn decides_normaliser(&self) -> bool {
        match self.tokenizer_class.as_deref() {
            Some(class) => matches!(class, "BertTokenizer" | "BertTokenizerFast"),
            None => true,
        }
    }

    /// That of `BertTokenizer` (`transformers/models/bert/tokenization_bert.py`).
    fn normaliser(&self) -> BertNormalizer {
        BertNormalizer::new(
            true,
            self.tokenize_chinese_chars.unwrap_or(true),
            self.strip_accents,
            self.do_lower_case.unwrap_or(true),
        )
    }
}

/// A token is written as a string or as an object with its content.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Object { content: String },
}

impl SpecialToken {
    fn content(token: Option<&Self>, default: &'static str) -> String {
        match token {
            Some(Self::Text(content) | Self::Object { content }) => content.clone(),
            None => default.to_owned(),
        }
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json`, else `vocab.txt`, and the optional `tokenizer_config.json` from a directory.
    /// Padding and truncation that the file declares are switched off. `settings` bound every text.
    ///
    /// # Errors
    /// A missing or broken file; a vocabulary without `[CLS]` or `[SEP]`.
    pub fn load(directory: &Path, settings: &InputSettings) -> Result<Self, TokenizerError> {
        let config = directory.join("tokenizer_config.json");
        let config: TokenizerConfig = match read(&config)? {
            Some(text) => parse_config(&config, &text)?,
            None => TokenizerConfig::default(),
        };
        let json = directory.join("tokenizer.json");
        let vocab = directory.join("vocab.txt");
        if let Some(text) = read(&json)? {
            return Self::build(&json, parse_json(&json, &text)?, &config, settings);
        }
        let Some(text) = read(&vocab)? else {
            return Err(TokenizerError::NotFound(directory.to_owned()));
        };
        let inner = from_vocabulary(&text, &config).map_err(|error| invalid(&vocab, &*error))?;
        Self::build(&vocab, inner, &config, settings)
    }

    /// As [`Tokenizer::load`], from the texts of a `tokenizer.json` and its `tokenizer_config.json`; `path` is what
    /// messages call the first.
    ///
    /// # Errors
    /// A broken file; a vocabulary without `[CLS]` or `[SEP]`.
    pub fn from_texts(
        path: &Path,
        json: &str,
        config: &str,
        settings: &InputSettings,
    ) -> Result<Self, TokenizerError> {
        let config = parse_config(&path.with_file_name("tokenizer_config.json"), config)?;
        Self::build(path, parse_json(path, json)?, &config, settings)
    }

    fn build(
        path: &Path,
        mut inner: tokenizers::Tokenizer,
        config: &TokenizerConfig,
        settings: &InputSettings,
    ) -> Result<Self, TokenizerError> {
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::WordPiece(_))) {
            return Err(invalid(path, "its decoder is not WordPiece"));
        }
        if config.decides_normaliser() {
            inner
                .with_normalizer(Some(config.normaliser()))
                .map_err(|error| invalid(path, &*error))?;
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| invalid(path, &*error))?;
        inner.set_encode_special_tokens(true);
        let id = |token: Option<&SpecialToken>, default| {
            let token = SpecialToken::content(token, default);
            let missing = || invalid(path, &format!("the vocabulary has no {token}"));
            inner.token_to_id(&token).ok_or_else(missing)
        };
        let cls = id(config.cls_token.as_ref(), "[CLS]")?;
        let sep = id(config.sep_token.as_ref(), "[SEP]")?;
        let clean_up = config.clean_up_tokenization_spaces.unwrap_or(false);
        Ok(Self { inner, settings: settings.clone(), clean_up, cls, sep })
    }

    /// `[CLS] text [SEP]`, whatever its length in tokens.
    ///
    /// # Errors
    /// `TextTooLong` in bytes or characters, `InvalidText`, `Tokenizer`.
    pub fn encode(&self, text: &str) -> Result<TokenIds, InputError> {
        check_text(text, &self.settings)?;
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| InputError::Tokenizer(error.to_string()))?;
        let text = encoding.get_ids();
        let mut ids = Vec::with_capacity(text.len() + 2);
        ids.push(self.cls);
        ids.extend_from_slice(text);
        ids.push(self.sep);
        Ok(TokenIds::new(ids))
    }

    /// As [`encode`](Self::encode), refusing more than `max_tokens` tokens, special ones included.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); `TextTooLong` in tokens.
    pub fn encode_within(&self, text: &str, max_tokens: usize) -> Result<TokenIds, InputError> {
        let ids = self.encode(text)?;
        if ids.len() > max_tokens {
            let (length, limit) = (ids.len(), max_tokens);
            return Err(InputError::TextTooLong { length, limit, unit: "tokens" });
        }
        Ok(ids)
    }

    /// As [`encode`](Self::encode), dropping tokens before `[SEP]` until at most `max_tokens` (2 or more) are left.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_truncated(&self, text: &str, max_tokens: usize) -> Result<TokenIds, InputError> {
        let ids = self.encode(text)?;
        if ids.len() <= max_tokens {
            return Ok(ids);
        }
        let mut kept = ids.as_slice()[..max_tokens.max(2) - 1].to_vec();
        kept.push(self.sep);
        Ok(TokenIds::new(kept))
    }

    /// The text of these ids without special tokens and without ids that the vocabulary does not hold, spaced as
    /// `transformers`' `decode(ids, skip_special_tokens=True)` spaces it.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "`load` accepts WordPiece decoders only, they cannot fail"
    )]
    pub fn decode(&self, ids: &[u32]) -> String {
        let text = self.inner.decode(ids, true).expect("a WordPiece decoder accepts any tokens");
        if self.clean_up { clean_up(&text) } else { text }
    }

    /// The text that `new` adds to `prompt` in `decode(prompt and new)`, without the space between them.
    #[must_use]
    pub fn decode_continuation(&self, prompt: &[u32], new: &[u32]) -> String {
        let before = self.decode(prompt);
        let whole = self.decode(&[prompt, new].concat());
        let common: usize = before
            .chars()
            .zip(whole.chars())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        whole[common..].trim_start().to_owned()
    }

    /// Decodes ids one by one as they are generated, `prompt` first.
    #[must_use]
    pub fn detokenizer(&self, prompt: &[u32]) -> Detokenizer<'_> {
        Detokenizer::new(self, prompt)
    }

    /// True when later ids can still change how the last word is spaced.
    pub(super) fn cleans_up(&self) -> bool {
        self.clean_up
    }

    /// One more than the largest id, added tokens included: a table with as many rows holds them all. The model's may
    /// be larger by tokens without a text.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// The id of `[CLS]`.
    #[must_use]
    pub fn cls_id(&self) -> u32 {
        self.cls
    }

    /// The id of `[SEP]`.
    #[must_use]
    pub fn sep_id(&self) -> u32 {
        self.sep
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocab_size())
    }
}

/// The file's text, or `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(LFS_POINTER) => {
            Err(invalid(path, "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"))
        }
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

fn invalid(path: &Path, problem: &(impl ToString + ?Sized)) -> TokenizerError {
    TokenizerError::Invalid { path: path.to_owned(), problem: problem.to_string() }
}

fn parse_config(path: &Path, text: &str) -> Result<TokenizerConfig, TokenizerError> {
    serde_json::from_str(text).map_err(|error| invalid(path, &error))
}

fn parse_json(path: &Path, text: &str) -> Result<tokenizers::Tokenizer, TokenizerError> {
    text.parse().map_err(|error: tokenizers::Error| invalid(path, &*error))
}

/// `BertTokenizer` over a plain vocabulary, one token a line (`transformers/models/bert/tokenization_bert.py`).
fn from_vocabulary(
    text: &str,
    config: &TokenizerConfig,
) -> Result<tokenizers::Tokenizer, tokenizers::Error> {
    const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let vocabulary = WordPiece::read_bytes(text.as_bytes())?;
    let model = WordPiece::builder().vocab(vocabulary).build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(config.normaliser()))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
    let known = SPECIAL.into_iter().filter(|token| tokenizer.token_to_id(token).is_some());
    let known: Vec<AddedToken> = known.map(|token| AddedToken::from(token, true)).collect();
    tokenizer.add_special_tokens(known)?;
    Ok(tokenizer)
}

/// `clean_up_tokenization` of `transformers/tokenization_utils_base.py`, on top of the decoder's own clean-up.
fn clean_up(text: &str) -> String {
    text.replace(" .", ".")
        .replace(" ?", "?")
        .replace(" !", "!")
        .replace(" ,", ",")
        .replace(" ' ", "'")
        .replace(" n't", "n't")
        .replace(" 'm", "'m")
        .replace(" 's", "'s")
        .replace(" 've", "'ve")
        .replace(" 're", "'re")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: &str =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[\n]\nsep\na\nman\n'\ns\nhat\n,\n##s\nA\n";

    fn load(config: &str) -> Result<Tokenizer, TokenizerError> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("vocab.txt"), VOCABULARY).unwrap();
        fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
        let settings = InputSettings { max_text_chars: 40, ..InputSettings::default() };
        Tokenizer::load(directory.path(), &settings)
    }

    fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text).unwrap().as_slice().to_vec()
    }

    #[test]
    fn a_text_is_lower_cased_and_framed() {
        let tokenizer = load("{}").unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.cls_id(), tokenizer.sep_id()), (16, 2, 3));
        assert_eq!(encode(&tokenizer, "A MAN's hats"), [2, 8, 9, 10, 11, 12, 14, 3]);
        assert_eq!(encode(&tokenizer, ""), [2, 3]);
        assert_eq!(encode(&tokenizer, "unknown"), [2, 1, 3]);
    }

    #[test]
    fn do_lower_case_is_honoured() {
        let tokenizer = load("{\"do_lower_case\": false}").unwrap();
        assert_eq!(encode(&tokenizer, "A a"), [2, 15, 8, 3]);
    }

    #[test]
    fn special_tokens_in_a_text_are_plain_text() {
        let tokenizer = load("{}").unwrap();
        assert_eq!(encode(&tokenizer, "a [SEP]"), [2, 8, 5, 7, 6, 3]);
        assert_eq!(encode(&tokenizer, "[MASK]"), [2, 5, 1, 6, 3]);
    }

    #[test]
    fn decoding_drops_special_and_unknown_ids_and_spaces_as_configured() {
        let ids = [30522, 8, 9, 10, 11, 12, 14, 13, 3, 0];
        assert_eq!(load("{}").unwrap().decode(&ids), "a man ' s hats,");
        let config = "{\"clean_up_tokenization_spaces\": true}";
        assert_eq!(load(config).unwrap().decode(&ids), "a man's hats,");
    }

    #[test]
    fn a_continuation_is_what_the_prompt_does_not_say() {
        let tokenizer = load("{\"clean_up_tokenization_spaces\": true}").unwrap();
        assert_eq!(tokenizer.decode_continuation(&[8, 9], &[12, 13]), "hat,");
        assert_eq!(tokenizer.decode_continuation(&[8, 9], &[10, 11]), "'s");
        assert_eq!(tokenizer.decode_continuation(&[8, 12], &[14]), "s");
        assert_eq!(tokenizer.decode_continuation(&[], &[8]), "a");
    }

    #[test]
    fn token_limits_refuse_or_cut() {
        let tokenizer = load("{}").unwrap();
        let too_long = InputError::TextTooLong { length: 5, limit: 4, unit: "tokens" };
        assert_eq!(tokenizer.encode_within("a man a", 4), Err(too_long));
        assert_eq!(tokenizer.encode_within("a man", 4).unwrap().as_slice(), [2, 8, 9, 3]);
        assert_eq!(tokenizer.encode_truncated("a man a", 4).unwrap().as_slice(), [2, 8, 9, 3]);
    }

    #[test]
    fn texts_are_checked_before_they_are_tokenised() {
        let tokenizer = load("{}").unwrap();
        let error = tokenizer.encode(&"a ".repeat(21)).unwrap_err();
        assert_eq!(error, InputError::TextTooLong { length: 42, limit: 40, unit: "characters" });
        assert!(matches!(tokenizer.encode("a\0"), Err(InputError::InvalidText { .. })));
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let mut inner = from_vocabulary(VOCABULARY, &TokenizerConfig::default()).unwrap();
        let truncation = tokenizers::TruncationParams { max_length: 3, ..Default::default() };
        inner.with_truncation(Some(truncation)).unwrap();
        let strategy = tokenizers::PaddingStrategy::Fixed(9);
        inner.with_padding(Some(tokenizers::PaddingParams { strategy, ..Default::default() }));
        inner.save(directory.path().join("tokenizer.json"), false).unwrap();
        let tokenizer = Tokenizer::load(directory.path(), &InputSettings::default()).unwrap();
        assert_eq!(encode(&tokenizer, "a man a man"), [2, 8, 9, 8, 9, 3]);
    }

    #[test]
    fn broken_directories_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let load = || Tokenizer::load(directory.path(), &InputSettings::default());
        assert!(matches!(load(), Err(TokenizerError::NotFound(_))));
        fs::write(directory.path().join("vocab.txt"), "a\nb\n").unwrap();
        assert!(matches!(load(), Err(TokenizerError::Invalid { .. })));
        fs::write(directory.path().join("tokenizer.json"), "{").unwrap();
        let Err(TokenizerError::Invalid { path, .. }) = load() else { panic!("{:?}", load()) };
        assert!(path.ends_with("tokenizer.json"));
    }
}
