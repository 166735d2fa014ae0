//! Converts token ids to text incrementally, while they are generated.

use super::Tokenizer;

/// An incremental decoder of token ids. The pieces that it returns, concatenated, equal [`Tokenizer::decode`] of all
/// ids.
///
/// If the tokenizer's `clean_up_tokenization_spaces` is true, text that later ids can still change is held back.
#[derive(Debug)]
pub struct Detokenizer<'tokenizer> {
    tokenizer: &'tokenizer Tokenizer,
    ids: Vec<u32>,
    /// Number of bytes of the decoded text that have already been returned.
    given: usize,
}

impl Tokenizer {
    /// Returns a detokenizer. It decodes the ids that follow `prompt` one by one while they are generated.
    #[must_use]
    pub fn detokenizer(&self, prompt: &[u32]) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, ids: prompt.to_vec(), given: 0 }
    }
}

impl Detokenizer<'_> {
    /// Adds an id. Returns the new text that later ids can no longer change; it may be empty. The first piece begins
    /// with the text of the prompt.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids);
        let settled = if self.tokenizer.cleans_up() { settled(&text) } else { text.len() };
        self.give(&text, settled)
    }

    /// Returns the text that was held back. Call it once, after the last id.
    pub fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.ids);
        self.give(&text, text.len())
    }

    fn give(&mut self, text: &str, settled: usize) -> String {
        let piece = text.get(self.given..settled).unwrap_or_default().to_owned();
        self.given += piece.len();
        piece
    }
}

/// Returns the size in bytes of the settled part of a cleaned-up text: the part at its start that no later id can
/// change. Every clean-up rule starts at a space, and later ids can only merge with the text after the last space.
/// There is one exception: "n", "'", "t" become "n't" in two steps, so if the second-to-last word is "n", it is held
/// back as well.
fn settled(text: &str) -> usize {
    let last_word = text.rfind(' ').unwrap_or(0);
    let before = &text[..last_word];
    if before == "n" || before.ends_with(" n") { before.rfind(' ').unwrap_or(0) } else { last_word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::InputSettings;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// A vocabulary of words that the clean-up rules change, and of word pieces that form such words.
    const WORDS: [&str; 24] = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "do", "not", ".", "?", "!", ",",
        "'", "n", "t", "s", "m", "ve", "re", "##s", "##t", "##n", "##'",
    ];

    static CLEANING: LazyLock<Tokenizer> = LazyLock::new(|| load(true));
    static PLAIN: LazyLock<Tokenizer> = LazyLock::new(|| load(false));

    fn load(clean_up: bool) -> Tokenizer {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("vocab.txt"), WORDS.join("\n")).unwrap();
        let config = format!("{{\"clean_up_tokenization_spaces\": {clean_up}}}");
        std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::load(directory.path(), &InputSettings::default()).unwrap()
    }

    fn ids(words: &[&str]) -> Vec<u32> {
        let id = |word| WORDS.iter().position(|known| known == word).unwrap() as u32;
        words.iter().map(id).collect()
    }

    fn pieces(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32]) -> Vec<String> {
        let mut detokenizer = tokenizer.detokenizer(prompt);
        let mut pieces: Vec<String> = new.iter().map(|&id| detokenizer.push(id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn without_clean_up_each_id_gives_its_text_at_once() {
        let pieces =
            pieces(&PLAIN, &ids(&["[CLS]", "a"]), &ids(&["man", "##s", "'", "s", "[SEP]"]));
        assert_eq!(pieces, ["a man", "s", " '", " s", "", ""]);
    }

    #[test]
    fn with_clean_up_the_last_word_waits() {
        let pieces =
            pieces(&CLEANING, &ids(&["a"]), &ids(&["man", "'", "s", "do", "n", "'", "t", "."]));
        assert_eq!(pieces, ["a", " man", "", "'s", " do", "", "", "", "n't."]);
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_whole_text(
            prompt in prop::collection::vec(0..WORDS.len() as u32 + 2, 0..5),
            new in prop::collection::vec(0..WORDS.len() as u32 + 2, 0..24),
        ) {
            for tokenizer in [&*PLAIN, &*CLEANING] {
                let whole = tokenizer.decode(&[&prompt[..], &new].concat());
                prop_assert_eq!(pieces(tokenizer, &prompt, &new).concat(), whole);
            }
        }
    }
}
