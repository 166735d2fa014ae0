//! Removes stop strings from texts. This server's own routes keep a stop string in the text, as transformers does; the
//! OpenAI and Ollama APIs leave it out.

use crate::http::extract::fields::Text;

/// Returns the text up to its first stop string. A generation ends with the token that completes a stop string, so the
/// text behind it is the rest of that token.
pub(super) fn without_stop<'t>(text: &'t str, stops: &[Text]) -> &'t str {
    let found = stops.iter().filter_map(|stop| text.find(&*stop.0)).min();
    found.map_or(text, |end| &text[..end])
}

/// Removes a stop string from a text that arrives in pieces. Holds back what may be the beginning of a stop string.
#[derive(Debug)]
pub(super) struct StopCutter {
    stops: Vec<Text>,
    held: String,
    stopped: bool,
}

impl StopCutter {
    /// Creates a cutter at the beginning of a text.
    pub(super) fn new(stops: Vec<Text>) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds a piece, and returns what can be passed on.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(&*stop.0)).min() {
            self.stopped = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let rest = self.held.split_off(self.passable());
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns what was held back, at the end of the text.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns the length of the part of `held` that cannot belong to a stop string.
    fn passable(&self) -> usize {
        let starts_stop = |rest: &str| self.stops.iter().any(|stop| stop.0.starts_with(rest));
        let starts = self.held.char_indices().map(|(start, _)| start);
        starts
            .into_iter()
            .find(|&start| starts_stop(&self.held[start..]))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(texts: &[&str]) -> Vec<Text> {
        texts.iter().map(|text| Text::try_new(text).unwrap()).collect()
    }

    fn cut(pieces: &[&str], stop: &[&str]) -> (Vec<String>, String) {
        let mut cutter = StopCutter::new(stops(stop));
        let passed: Vec<String> = pieces.iter().map(|piece| cutter.push(piece)).collect();
        (passed, cutter.finish())
    }

    #[test]
    fn a_whole_text_ends_before_its_stop_string() {
        assert_eq!(without_stop("two cats on a blue", &stops(&[" on"])), "two cats");
        assert_eq!(without_stop("an umbrella", &stops(&["x", "l"])), "an umbre");
        assert_eq!(without_stop("two cats", &stops(&["dog"])), "two cats");
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_passed_on() {
        let (passed, rest) = cut(&["two ca", "ts o", "n a"], &["s on"]);
        assert_eq!(
            (passed, rest),
            (vec!["two ca".into(), "t".into(), String::new()], String::new())
        );
        let (passed, rest) = cut(&["two", " cats", " in"], &[" on", " in the"]);
        assert_eq!((passed.concat(), rest), ("two cats".to_owned(), " in".to_owned()));
        let (passed, rest) = cut(&["\u{e9}a", "b"], &["ab", "\u{e9}x"]);
        assert_eq!((passed.concat(), rest), ("\u{e9}".to_owned(), String::new()));
        assert_eq!(cut(&["a", "b"], &[]).0, ["a", "b"]);
    }
}
