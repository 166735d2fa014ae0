//! Converts text to token ids and back, as `transformers` does with the files of a checkpoint.
//!
//! There is one deliberate deviation: special tokens inside a client's text are treated as plain text (`[SEP]` is
//! encoded as `[`, `sep` and `]`). Otherwise, a client's text could end the sequence early or inject tokens that appear
//! to come from the model.

mod build;
mod entries;
mod files;
#[cfg(test)]
mod goldens;
mod options;
mod token;
mod word_pieces;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokenizers::{Decoder as _, OffsetType, PreTokenizer as _, Token};

use self::build::{Built, build};
use self::files::Files;
use self::word_pieces::WordPieces;
use super::{InputError, InputSettings, TokenizerError, check_text};
use crate::task::{TokenIds, TokenTexts};

/// The tokenizer of a checkpoint. All threads share it through an `Arc`.
pub struct Tokenizer {
    /// Everything but its model, which `pieces` replaces in [`encode`](Self::encode).
    inner: tokenizers::Tokenizer,
    pieces: WordPieces,
    settings: InputSettings,
    clean_up: bool,
    cls: u32,
    sep: u32,
    /// Built when a request needs it for the first time.
    token_texts: OnceLock<Arc<TokenTexts>>,
}

impl Tokenizer {
    /// Loads the tokenizer from a checkpoint directory. Reads `tokenizer.json` (or `vocab.txt` if there is none) and
    /// the other files that define the tokenizer's class, options and added tokens. Padding and truncation settings of
    /// these files are ignored. `settings` limits the length of every text.
    ///
    /// # Errors
    /// A missing or broken file, or a tokenizer that does not put one token before and one after a text.
    pub fn load(directory: &Path, settings: &InputSettings) -> Result<Self, TokenizerError> {
        Self::of(&Files::read(directory)?, settings)
    }

    /// Like [`Tokenizer::load`], but takes the contents of `tokenizer.json` and `tokenizer_config.json`. Error messages
    /// use `path` for `tokenizer.json`.
    ///
    /// # Errors
    /// Same as for [`Tokenizer::load`].
    pub fn from_texts(
        path: &Path,
        json: &str,
        config: &str,
        settings: &InputSettings,
    ) -> Result<Self, TokenizerError> {
        Self::of(&Files::of_texts(path, json, config)?, settings)
    }

    fn of(files: &Files, settings: &InputSettings) -> Result<Self, TokenizerError> {
        let Built { inner, pieces, cls, sep, clean_up } = build(files)?;
        Ok(Self {
            inner,
            pieces,
            settings: settings.clone(),
            clean_up,
            cls,
            sep,
            token_texts: OnceLock::new(),
        })
    }

    /// Encodes a text as `[CLS] text [SEP]`, without a limit on the number of tokens.
    ///
    /// # Errors
    /// `TextTooLong` in bytes or characters, `InvalidText`, `Tokenizer`.
    pub fn encode(&self, text: &str) -> Result<TokenIds, InputError> {
        check_text(text, &self.settings)?;
        let encoding =
            self.encode_plain(text).map_err(|error| InputError::Tokenizer(error.to_string()))?;
        let text = encoding.get_ids();
        let mut ids = Vec::with_capacity(text.len() + 2);
        ids.push(self.cls);
        ids.extend_from_slice(text);
        ids.push(self.sep);
        Ok(TokenIds::new(ids))
    }

    /// Does the steps of `encode_fast` of `tokenizers`, with a faster model.
    fn encode_plain(&self, text: &str) -> tokenizers::Result<tokenizers::Encoding> {
        let added = self.inner.get_added_vocabulary();
        let mut words = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut words)?;
        }
        // Only the ids are used.
        let token = |id| Token { id, value: String::new(), offsets: (0, 0) };
        words
            .tokenize(|word| Ok(self.pieces.split(word.get()).into_iter().map(token).collect()))?;
        let encoding = words.into_encoding(None, 0, OffsetType::None)?;
        self.inner.post_process(encoding, None, false)
    }

    /// Like [`encode`](Self::encode), but rejects a text of more than `max_tokens` tokens, including special tokens.
    ///
    /// # Errors
    /// Same as for [`encode`](Self::encode), and `TextTooLong` in tokens.
    pub fn encode_within(&self, text: &str, max_tokens: usize) -> Result<TokenIds, InputError> {
        Self::within(self.encode(text)?, max_tokens)
    }

    /// Rejects the ids of a text if there are more than `max_tokens`.
    ///
    /// # Errors
    /// `TextTooLong` in tokens.
    pub fn within(ids: TokenIds, max_tokens: usize) -> Result<TokenIds, InputError> {
        if ids.len() > max_tokens {
            let (length, limit) = (ids.len(), max_tokens);
            return Err(InputError::TextTooLong { length, limit, unit: "tokens" });
        }
        Ok(ids)
    }

    /// Like [`encode`](Self::encode), but drops tokens before `[SEP]` until at most `max_tokens` (2 or more) remain.
    ///
    /// # Errors
    /// Same as for [`encode`](Self::encode).
    pub fn encode_truncated(&self, text: &str, max_tokens: usize) -> Result<TokenIds, InputError> {
        Ok(self.truncated(self.encode(text)?, max_tokens))
    }

    /// Drops ids before the `[SEP]` of a text until at most `max_tokens` (2 or more) remain.
    #[must_use]
    pub fn truncated(&self, ids: TokenIds, max_tokens: usize) -> TokenIds {
        if ids.len() <= max_tokens {
            return ids;
        }
        let mut kept = ids.as_slice()[..max_tokens.max(2) - 1].to_vec();
        kept.push(self.sep);
        TokenIds::new(kept)
    }

    /// Decodes ids to text. Special tokens and ids that are not in the vocabulary are skipped. The spacing is that of
    /// `decode(ids, skip_special_tokens=True)` in `transformers`.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "`load` accepts only WordPiece decoders, which cannot fail"
    )]
    pub fn decode(&self, ids: &[u32]) -> String {
        let text = self.inner.decode(ids, true).expect("a WordPiece decoder accepts any tokens");
        if self.clean_up { clean_up(&text) } else { text }
    }

    /// Returns the text that `new` adds to `prompt` when both are decoded together, without the space between them.
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

    /// True if later ids can still change the spacing of the last word.
    pub(super) fn cleans_up(&self) -> bool {
        self.clean_up
    }

    /// Returns the token with this id as the vocabulary spells it; `None` if the vocabulary has no such id.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns the largest id plus one, including added tokens, so that a table with this number of rows covers all
    /// ids. The model's vocabulary may be larger; its additional tokens have no text.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// Returns the text that each token adds to a text, special tokens included. Same as `clean_tokenizer_vocab` in
    /// `transformers`, which prepares stop strings.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "`load` accepts only WordPiece decoders")]
    pub fn token_texts(&self) -> Arc<TokenTexts> {
        let build = || {
            let decoder = self.inner.get_decoder().expect("`load` checks the decoder");
            let text = |id| {
                let Some(token) = self.inner.id_to_token(id) else { return String::new() };
                // The decoder treats the first token of a text differently, so another token comes first.
                let pieces = decoder.decode_chain(vec!["a".to_owned(), token]);
                let piece = pieces.expect("a WordPiece decoder accepts any tokens").pop();
                piece.unwrap_or_default()
            };
            Arc::new((0..self.vocab_size() as u32).map(text).collect())
        };
        Arc::clone(self.token_texts.get_or_init(build))
    }

    /// Returns the id of the start token `[CLS]`.
    #[must_use]
    pub fn cls_id(&self) -> u32 {
        self.cls
    }

    /// Returns the id of the end token `[SEP]`.
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

/// Removes spaces as `clean_up_tokenization` of `transformers/tokenization_utils_base.py` does. It is applied after the
/// decoder's own clean-up.
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
    use std::fs;

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
    fn the_text_of_a_token_has_the_space_that_separates_it_from_the_token_before() {
        let texts = load("{}").unwrap().token_texts();
        let expected = [(3, " [SEP]"), (9, " man"), (10, " '"), (13, ","), (14, "s")];
        for (id, text) in expected {
            assert_eq!(texts.get(id), Some(text));
        }
        assert_eq!(texts.get(16), None);
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
    fn texts_give_the_ids_of_the_library() {
        let tokenizer = load("{}").unwrap();
        for text in [
            "",
            " ",
            "hats, hats!",
            "A man's hatss",
            "unknown",
            "[UNK] [MASK]",
            "\u{e3f}hat h\u{e3f}",
        ] {
            let expected = tokenizer.inner.encode_fast(text, false).unwrap();
            assert_eq!(
                tokenizer.encode_plain(text).unwrap().get_ids(),
                expected.get_ids(),
                "{text:?}"
            );
        }
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
    fn a_directory_without_a_vocabulary_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let found = Tokenizer::load(directory.path(), &InputSettings::default());
        assert!(matches!(found, Err(TokenizerError::NotFound(_))), "{found:?}");
    }
}
