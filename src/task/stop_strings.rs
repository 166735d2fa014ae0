//! Strings that end a generation, and the token texts against which they are compared. Same results as
//! `StopStringCriteria` in `transformers` 5.23 (`generation/stopping_criteria.py`).

use std::fmt;
use std::sync::Arc;

/// The text that each token of a vocabulary adds to a text, with the space before it if it starts a word. Indexed by
/// token id. The tokenizer of a model builds the table once; all requests share it.
pub struct TokenTexts {
    /// All texts, one after the other.
    texts: String,
    /// Position in `texts` where the text of each token ends.
    ends: Vec<usize>,
}

impl TokenTexts {
    /// Returns the text of a token, or `None` if the vocabulary has no such token.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.texts[start..end])
    }
}

impl<T: AsRef<str>> FromIterator<T> for TokenTexts {
    /// Collects the texts of the tokens 0, 1, 2 and so on.
    fn from_iter<I: IntoIterator<Item = T>>(tokens: I) -> Self {
        let (mut texts, mut ends) = (String::new(), Vec::new());
        for token in tokens {
            texts.push_str(token.as_ref());
            ends.push(texts.len());
        }
        Self { texts, ends }
    }
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenTexts({} tokens)", self.ends.len())
    }
}

/// The `stop_strings` of a request. Clones share the strings and the table.
#[derive(Debug, Clone)]
pub struct StopStrings {
    strings: Arc<[Arc<str>]>,
    texts: Arc<TokenTexts>,
}

impl StopStrings {
    /// Combines the strings of a request with the token texts of the model's tokenizer.
    #[must_use]
    pub fn new(strings: Arc<[Arc<str>]>, texts: Arc<TokenTexts>) -> Self {
        Self { strings, texts }
    }

    /// True if the text contains a stop string that ends in the last token, at any place in it. `reversed` yields the
    /// tokens from the last to the first, including those of the prompt.
    #[must_use]
    pub fn end_the_text(&self, reversed: impl Iterator<Item = u32>) -> bool {
        let longest = self.strings.iter().map(|string| string.len()).max().unwrap_or(0);
        // A token outside the vocabulary, such as the start token, has no text that a stop string could continue.
        let mut pieces = reversed.map_while(|id| self.texts.get(id));
        let Some(last) = pieces.next() else { return false };
        let mut pieces_before = Vec::new();
        let mut before = 0;
        while before < longest
            && let Some(piece) = pieces.next()
        {
            before += piece.len();
            pieces_before.push(piece);
        }
        pieces_before.reverse();
        let text = pieces_before.concat() + last;
        self.strings.iter().any(|string| {
            // The string must end behind the first byte of the last token. Comparing bytes is enough, because no
            // character of UTF-8 begins inside another.
            let first = (before + 1).saturating_sub(string.len());
            let mut windows = text.as_bytes()[first.min(text.len())..].windows(string.len().max(1));
            windows.any(|window| window == string.as_bytes())
        })
    }
}

impl PartialEq for StopStrings {
    fn eq(&self, other: &Self) -> bool {
        self.strings == other.strings && Arc::ptr_eq(&self.texts, &other.texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 8] = [" a", " cat", "s", " sat", ".", " é", "", " cat sat on"];

    fn ends(strings: &[&str], ids: &[u32]) -> bool {
        let texts = Arc::new(TEXTS.iter().collect::<TokenTexts>());
        let strings: Vec<Arc<str>> = strings.iter().map(|&string| string.into()).collect();
        StopStrings::new(strings.into(), texts).end_the_text(ids.iter().rev().copied())
    }

    #[test]
    fn a_string_may_begin_and_end_inside_tokens() {
        let cases: [(&str, &[u32], bool); 13] = [
            ("cat", &[0, 1], true),
            (" cat", &[1], true),
            ("a", &[0, 1], true),
            ("t sa", &[1, 3], true),
            ("cats", &[1, 2], true),
            ("t s", &[7], true),
            ("on", &[7], true),
            // It ended before the last token, so it would have ended the text there.
            ("cat", &[1, 2], false),
            ("cat", &[1, 3], false),
            ("Cat", &[1], false),
            ("cat.", &[1, 2, 4], false),
            ("a cat sat.", &[0, 1, 3, 4], true),
            ("é", &[5], true),
        ];
        for (string, ids, expected) in cases {
            assert_eq!(ends(&[string], ids), expected, "{string:?} {ids:?}");
        }
    }

    #[test]
    fn any_of_several_strings_is_enough() {
        assert!(ends(&["dog", "sat", "a much longer string than the text"], &[0, 1, 3]));
        assert!(!ends(&["dog", "cow"], &[0, 1, 3]));
    }

    #[test]
    fn tokens_without_text_and_unknown_tokens_match_nothing() {
        assert!(!ends(&["cat"], &[]));
        assert!(!ends(&["cat"], &[1, 6]));
        assert!(!ends(&["cat"], &[1, 99]));
        assert!(!ends(&["a cat"], &[0, 99, 1]));
        assert!(ends(&["cat"], &[99, 1]));
    }
}
