//! The columns of a CSV table: the answer of each task as cells.

use serde_json::{Map, Value};

use super::Kind;

/// Maximum number of captions with columns of their own. A request may ask for fewer.
const MOST: u64 = 64;

/// The columns of a run, between those of the file and `error`.
#[derive(Debug)]
pub(super) struct Columns {
    kind: Kind,
    /// Fields of the request.
    fields: Map<String, Value>,
    names: Vec<String>,
    /// Number of captions, questions or texts.
    count: usize,
}

impl Columns {
    /// Returns the columns for requests with these fields.
    pub(super) fn new(kind: Kind, fields: &Map<String, Value>) -> Self {
        let texts = |name: &str| strings(fields.get(name), None);
        let mut count = 1;
        let names = match kind {
            Kind::Caption if fields.contains_key("candidates") => {
                vec!["caption".to_owned(), "probability".to_owned()]
            }
            Kind::Caption => {
                let captions = fields.get("num_return_sequences").and_then(Value::as_u64);
                count = captions.map_or(1, |captions| captions.min(MOST) as usize);
                let number =
                    |at: usize| if at == 0 { String::new() } else { format!("_{}", at + 1) };
                let verified = fields.contains_key("verify");
                let of_one = |at: usize| {
                    let (caption, score) =
                        (format!("caption{}", number(at)), format!("match{}", number(at)));
                    std::iter::once(caption).chain(verified.then_some(score))
                };
                (0..count).flat_map(of_one).collect()
            }
            Kind::Ask => {
                let questions = texts("questions");
                count = questions.len().max(1);
                if questions.is_empty() { vec!["answer".to_owned()] } else { questions }
            }
            Kind::Match => {
                let texts = texts("texts");
                count = texts.len();
                texts
                    .iter()
                    .flat_map(|text| [format!("match: {text}"), format!("cosine: {text}")])
                    .collect()
            }
            Kind::Embed => vec!["embedding".to_owned()],
            Kind::Classify => vec!["label".to_owned(), "probability".to_owned()],
        };
        Self { kind, fields: fields.clone(), names, count }
    }

    /// True if a row of JSON is an answer of this task to these questions. Rows of lists may have other questions.
    pub(super) fn fits(&self, row: &Map<String, Value>, has_lists: bool) -> bool {
        let none = Map::new();
        let fields = if has_lists && self.kind == Kind::Ask { &none } else { &self.fields };
        is_answer(self.kind, fields, row)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the cells of an answer; empty where it has no value.
    pub(super) fn cells(&self, answer: &Map<String, Value>) -> Vec<String> {
        let answer = Value::Object(answer.clone());
        let at = |pointer: String| answer.pointer(&pointer).map(text).unwrap_or_default();
        match self.kind {
            Kind::Caption if answer.get("ranking").is_some() => {
                vec![at("/ranking/0/text".to_owned()), at("/ranking/0/probability".to_owned())]
            }
            Kind::Caption => {
                let cells = self.names.len() / self.count.max(1);
                let of_one = |caption: usize| {
                    ["text", "match"]
                        .into_iter()
                        .take(cells)
                        .map(move |name| format!("/captions/{caption}/{name}"))
                };
                (0..self.count).flat_map(of_one).map(at).collect()
            }
            Kind::Ask => {
                (0..self.count).map(|number| at(format!("/answers/{number}/answer"))).collect()
            }
            Kind::Match => {
                let of_one = |text: usize| {
                    ["match", "cosine"].map(|score| format!("/scores/0/{text}/{score}"))
                };
                (0..self.count).flat_map(of_one).map(at).collect()
            }
            Kind::Embed => vec![at("/embedding".to_owned())],
            Kind::Classify => {
                ["label", "probability"].map(|name| at(format!("/labels/0/{name}"))).into()
            }
        }
    }
}

/// True if a row is an answer of this task to these questions.
fn is_answer(kind: Kind, fields: &Map<String, Value>, row: &Map<String, Value>) -> bool {
    match kind {
        Kind::Caption => row.contains_key("captions") || row.contains_key("ranking"),
        Kind::Ask => {
            let asked = strings(fields.get("questions"), None);
            row.contains_key("answers")
                && (asked.is_empty() || asked == strings(row.get("answers"), Some("question")))
        }
        Kind::Match => {
            let asked = strings(fields.get("texts"), None).len();
            let scores = row.get("scores").and_then(|scores| scores.get(0)?.as_array());
            scores.is_some_and(|scores| scores.len() == asked)
        }
        Kind::Embed => row.contains_key("embedding"),
        Kind::Classify => {
            let (mut asked, mut found) =
                (strings(fields.get("labels"), None), strings(row.get("labels"), Some("label")));
            asked.sort_unstable();
            found.sort_unstable();
            asked == found
        }
    }
}

/// Returns the texts of a list, or those of a field of its objects.
fn strings(list: Option<&Value>, field: Option<&str>) -> Vec<String> {
    let entries = list.and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value| {
        let text = field.map_or(Some(entry), |field| entry.get(field));
        text.and_then(Value::as_str).map(str::to_owned)
    };
    entries.filter_map(text).collect()
}

/// Returns a value as the text of a cell.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the texts of an answer, the best first: what a text file beside the picture holds.
pub(super) fn texts(kind: Kind, answer: &Map<String, Value>) -> Vec<String> {
    let (list, field) = match kind {
        Kind::Caption if answer.contains_key("ranking") => ("ranking", "text"),
        Kind::Caption => ("captions", "text"),
        Kind::Ask => ("answers", "answer"),
        Kind::Classify => ("labels", "label"),
        Kind::Match | Kind::Embed => return Vec::new(),
    };
    let texts = strings(answer.get(list), Some(field));
    // Labels and ranked candidates are alternatives, so only the best counts.
    let most = if matches!(list, "labels" | "ranking") { 1 } else { usize::MAX };
    texts.into_iter().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn each_task_has_its_columns() {
        for (kind, fields, answer, names, cells) in [
            (
                Kind::Caption,
                json!({"num_return_sequences": 2, "verify": true}),
                json!({"captions": [{"text": "a cat", "match": 0.5}]}),
                &["caption", "match", "caption_2", "match_2"][..],
                &["a cat", "0.5", "", ""][..],
            ),
            (
                Kind::Caption,
                json!({"candidates": ["a", "b"]}),
                json!({"ranking": [{"text": "b", "probability": 0.75}, {"text": "a", "probability": 0.25}]}),
                &["caption", "probability"],
                &["b", "0.75"],
            ),
            (
                Kind::Ask,
                json!({"questions": ["how many?", "where?"]}),
                json!({"answers": [{"answer": "2"}, {"answer": "here"}]}),
                &["how many?", "where?"],
                &["2", "here"],
            ),
            (
                Kind::Match,
                json!({"texts": ["a cat"]}),
                json!({"scores": [[{"match": 1.0, "cosine": 0.5}]]}),
                &["match: a cat", "cosine: a cat"],
                &["1.0", "0.5"],
            ),
            (Kind::Embed, json!({}), json!({"embedding": [1, 2]}), &["embedding"], &["[1,2]"]),
            (
                Kind::Classify,
                json!({"labels": ["a"]}),
                json!({"labels": [{"label": "a", "probability": 1}]}),
                &["label", "probability"],
                &["a", "1"],
            ),
        ] {
            let columns = Columns::new(kind, &object(&fields));
            assert_eq!(columns.names(), names);
            assert_eq!(columns.cells(&object(&answer)), cells);
        }
    }

    #[test]
    fn texts_are_those_of_the_answer() {
        let captions = object(&json!({"captions": [{"text": "a"}, {"text": "b"}]}));
        assert_eq!(texts(Kind::Caption, &captions), ["a", "b"]);
        let labels = object(&json!({"labels": [{"label": "a"}, {"label": "b"}]}));
        assert_eq!(texts(Kind::Classify, &labels), ["a"]);
    }
}
