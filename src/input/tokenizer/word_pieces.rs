//! The WordPiece model: splits a word into the pieces of a vocabulary, always taking the longest piece that fits (greedy
//! search). Gives the same ids as `tokenizers::models::wordpiece`, which takes a time that is quadratic in the length of a
//! word; a client could thus make a text of 4,000 characters cost 45 ms (2026-12-01). Here it costs at most the length of
//! the word times that of the longest piece.
//!
//! The pieces are the paths of a tree (a trie). Its edges are bytes, so a search reads each byte of a piece once.

use std::ops::Range;

use tokenizers::Model as _;
use tokenizers::models::wordpiece::WordPiece;

/// The vocabulary of a WordPiece model, as a trie.
pub(super) struct WordPieces {
    nodes: Vec<Node>,
    /// The edges of all nodes. Those of one node are adjacent and sorted by their byte.
    edges: Vec<Edge>,
    /// The node at which the pieces that continue a word begin; `None` if the vocabulary has no such pieces.
    continuation: Option<u32>,
    unknown: u32,
    max_chars: usize,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// The id of the piece that ends here.
    id: Option<u32>,
    edges: Range<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    byte: u8,
    node: u32,
}

/// The node at which the first piece of a word begins.
const ROOT: u32 = 0;

impl WordPieces {
    /// Builds the trie. `None` if the vocabulary has no unknown token.
    pub(super) fn new(model: &WordPiece) -> Option<Self> {
        let unknown = model.token_to_id(&model.unk_token)?;
        let mut pieces: Vec<(String, u32)> = model.get_vocab().into_iter().collect();
        pieces.sort_unstable();
        let mut built = Self {
            nodes: vec![Node::default()],
            edges: Vec::new(),
            continuation: None,
            unknown,
            max_chars: model.max_input_chars_per_word,
        };
        // Depth first. An entry is a node, the pieces that go through it, and its depth in bytes.
        let mut level = vec![(ROOT, &pieces[..], 0)];
        while let Some((node, mut through, depth)) = level.pop() {
            // Of the sorted pieces, the one that ends at this node is the first.
            if let Some(((piece, id), rest)) = through.split_first()
                && piece.len() == depth
            {
                built.nodes[node as usize].id = Some(*id);
                through = rest;
            }
            let first = built.edges.len() as u32;
            for same in through.chunk_by(|a, b| a.0.as_bytes()[depth] == b.0.as_bytes()[depth]) {
                let child = built.nodes.len() as u32;
                built.nodes.push(Node::default());
                built.edges.push(Edge { byte: same[0].0.as_bytes()[depth], node: child });
                level.push((child, same, depth + 1));
            }
            built.nodes[node as usize].edges = first..built.edges.len() as u32;
        }
        let prefix = model.continuing_subword_prefix.bytes();
        built.continuation =
            prefix.into_iter().try_fold(ROOT, |node, byte| built.child(node, byte));
        Some(built)
    }

    /// Returns the ids of the pieces of a word that is not empty, or that of the unknown token if the word has too many
    /// characters or is not made of pieces.
    pub(super) fn split(&self, word: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        // A character has at most four bytes, so a shorter word need not be counted.
        let is_long = word.len() > self.max_chars && word.chars().count() > self.max_chars;
        if is_long || !self.split_into(word.as_bytes(), &mut ids) {
            return vec![self.unknown];
        }
        ids
    }

    /// Appends the ids of the pieces. False if the word is not made of pieces.
    fn split_into(&self, mut rest: &[u8], ids: &mut Vec<u32>) -> bool {
        let mut begin = Some(ROOT);
        while !rest.is_empty() {
            let Some((id, length)) = begin.and_then(|node| self.longest(node, rest)) else {
                return false;
            };
            ids.push(id);
            rest = &rest[length..];
            begin = self.continuation;
        }
        true
    }

    /// Returns the id and the length of the longest piece below `node` with which `text` begins.
    fn longest(&self, mut node: u32, text: &[u8]) -> Option<(u32, usize)> {
        let mut found = None;
        for (index, &byte) in text.iter().enumerate() {
            let Some(child) = self.child(node, byte) else { break };
            node = child;
            if let Some(id) = self.nodes[node as usize].id {
                found = Some((id, index + 1));
            }
        }
        found
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let Range { start, end } = self.nodes[node as usize].edges;
        let edges = &self.edges[start as usize..end as usize];
        let place = edges.binary_search_by_key(&byte, |edge| edge.byte).ok()?;
        Some(edges[place].node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The library's model with these pieces, and `[UNK]` as the last.
    fn model(pieces: &[String], prefix: &str, max_chars: usize) -> WordPiece {
        let pieces = pieces.iter().map(String::as_str).chain(["[UNK]"]);
        let ids: HashMap<String, u32, _> =
            pieces.enumerate().map(|(id, piece)| (piece.to_owned(), id as u32)).collect();
        let builder = WordPiece::builder().vocab(ids).unk_token("[UNK]".to_owned());
        let builder = builder.continuing_subword_prefix(prefix.to_owned());
        builder.max_input_chars_per_word(max_chars).build().unwrap()
    }

    fn ids_of_library(model: &WordPiece, word: &str) -> Vec<u32> {
        model.tokenize(word).unwrap().into_iter().map(|token| token.id).collect()
    }

    #[track_caller]
    fn check(model: &WordPiece, words: &[String]) {
        let pieces = WordPieces::new(model).unwrap();
        for word in words.iter().filter(|word| !word.is_empty()) {
            assert_eq!(pieces.split(word), ids_of_library(model, word), "{word:?}");
        }
    }

    proptest! {
        #[test]
        fn words_are_split_as_by_the_library(
            pieces in prop::collection::vec("(##|#)?[abé฿\u{1f600}#]{0,4}", 0..20),
            words in prop::collection::vec("[abé฿\u{1f600}#x]{1,14}", 1..30),
            prefix in prop::sample::select(vec!["##", "#", "", "é", "absent"]),
            max_chars in 0_usize..14,
        ) {
            check(&model(&pieces, prefix, max_chars), &words);
        }
    }

    #[test]
    fn words_that_are_made_to_take_long_are_split_as_by_the_library() {
        let pieces: Vec<String> = (b'a'..=b'z')
            .flat_map(|letter| {
                let letter = char::from(letter);
                [letter.to_string(), format!("##{letter}"), format!("##{letter}{letter}")]
            })
            .chain([
                "##".to_owned(),
                String::new(),
                "q".repeat(60),
                format!("##{}", "q".repeat(37)),
            ])
            .collect();
        let model = model(&pieces, "##", 100);
        let words: Vec<String> = [1, 2, 36, 37, 38, 59, 60, 61, 97, 98, 99, 100, 101]
            .into_iter()
            .flat_map(|length| {
                let word = "q".repeat(length);
                [format!("{word}\u{e3f}"), format!("\u{e3f}{word}"), format!("##{word}"), word]
            })
            .collect();
        check(&model, &words);
    }

    #[test]
    fn a_vocabulary_without_continuing_pieces_knows_whole_words_only() {
        let pieces = ["man", "hat"].map(str::to_owned);
        let words = ["man", "hat", "manhat", "m", "mans"].map(str::to_owned);
        check(&model(&pieces, "##", 100), &words);
    }
}
