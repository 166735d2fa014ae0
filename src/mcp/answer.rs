//! Turns the JSON answer of a route into what a language model reads: a few lines of text, and the JSON as structured
//! content. No picture is sent back; the text has the picture's id, by which later calls can name it.

use std::fmt::Write as _;

use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::Value;

use super::tools::ToolKind;

/// Returns the result of a call that failed. The text is for the language model, which can correct its arguments.
pub(super) fn failed(text: impl Into<String>) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}

/// Returns the result of a successful call.
pub(super) fn succeeded(kind: ToolKind, answer: Value) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(text(kind, &answer))]);
    result.structured_content = Some(answer);
    result
}

/// Returns the text of a problem document. Fields have the names of arguments: with files, `image` is `path`.
pub(super) fn problem(body: &[u8], has_paths: bool) -> String {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(detail) = problem["detail"].as_str() else {
        return "the server gave no reason".to_owned();
    };
    let mut text = detail.to_owned();
    for error in list(&problem["errors"]) {
        let (field, detail) = (string(&error["field"]), string(&error["detail"]));
        let renamed = field.strip_prefix("image").filter(|_| has_paths);
        let field = renamed.map_or_else(|| field.to_owned(), |rest| format!("path{rest}"));
        if !text.contains(detail) {
            let _ = write!(text, "\n{field}: {detail}");
        } else if !text.contains(&field) {
            text = format!("{field}: {text}");
        }
    }
    text
}

/// Adds to the results of a ranking what their indices refer to: paths or texts, under this name. A language model miscounts
/// long lists.
pub(super) fn name_results(answer: &mut Value, name: &str, candidates: &[String]) {
    let results = answer.get_mut("results").and_then(Value::as_array_mut);
    let Some(results) = results else { return };
    for result in results {
        let index = result["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        if let Some(candidate) = index.and_then(|index| candidates.get(index)) {
            result[name] = candidate.as_str().into();
        }
    }
}

fn text(kind: ToolKind, answer: &Value) -> String {
    let mut text = String::new();
    match kind {
        ToolKind::Caption => {
            for caption in list(&answer["captions"]) {
                line(&mut text, string(&caption["text"]), &[("match", &caption["match"])]);
            }
        }
        ToolKind::Ask => {
            for found in list(&answer["answers"]) {
                let pair = format!("{} {}", string(&found["question"]), string(&found["answer"]));
                line(&mut text, &pair, &[("probability", &found["ranking"][0]["probability"])]);
            }
        }
        ToolKind::Match => {
            for (index, cell) in list(&answer["scores"][0]).iter().enumerate() {
                let given = string(&answer["texts"][index]);
                line(&mut text, given, &[("match", &cell["match"]), ("cosine", &cell["cosine"])]);
            }
        }
        ToolKind::Classify => {
            for label in list(&answer["labels"]) {
                line(&mut text, string(&label["label"]), &[("probability", &label["probability"])]);
            }
        }
        ToolKind::Rank => {
            for (place, result) in list(&answer["results"]).iter().enumerate() {
                let named = [&result["path"], &result["text"]].map(string);
                let name = named.into_iter().find(|name| !name.is_empty());
                let name = format!(
                    "{}. {}",
                    place + 1,
                    name.map_or_else(|| format!("index {}", result["index"]), str::to_owned)
                );
                line(
                    &mut text,
                    &name,
                    &[("match", &result["match"]), ("cosine", &result["cosine"])],
                );
            }
        }
    }
    if let Some(id) = answer["image"]["id"].as_str().or_else(|| answer["images"][0]["id"].as_str())
        && list(&answer["images"]).len() <= 1
    {
        let _ = writeln!(text, "Picture: {id}");
    }
    text.truncate(text.trim_end().len());
    text
}

/// Writes a line with those numbers that exist.
fn line(text: &mut String, what: &str, numbers: &[(&str, &Value)]) {
    text.push_str(what);
    let known = numbers.iter().filter_map(|(name, value)| Some((name, value.as_f64()?)));
    let known: Vec<String> = known.map(|(name, value)| format!("{name} {value:.3}")).collect();
    if !known.is_empty() {
        let _ = write!(text, " ({})", known.join(", "));
    }
    text.push('\n');
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_short_lines() {
        let id = json!({"id": "sha256:12", "width": 2, "height": 2, "format": "png"});
        for (kind, answer, expected) in [
            (
                ToolKind::Caption,
                json!({"captions": [{"text": "two cats", "match": 0.91}], "image": id}),
                "two cats (match 0.910)\nPicture: sha256:12",
            ),
            (
                ToolKind::Ask,
                json!({"answers": [{"question": "how many?", "answer": "2"}], "image": id}),
                "how many? 2\nPicture: sha256:12",
            ),
            (
                ToolKind::Match,
                json!({"texts": ["a"], "scores": [[{"match": 0.5, "cosine": 0.25}]], "images": [id]}),
                "a (match 0.500, cosine 0.250)\nPicture: sha256:12",
            ),
            (
                ToolKind::Classify,
                json!({"labels": [{"label": "a cat", "probability": 1.0}], "image": id}),
                "a cat (probability 1.000)\nPicture: sha256:12",
            ),
            (
                ToolKind::Rank,
                json!({"results": [{"index": 4, "path": "e.jpg", "cosine": 0.5}, {"index": 0, "cosine": 0.1}],
                       "images": [id, id]}),
                "1. e.jpg (cosine 0.500)\n2. index 0 (cosine 0.100)",
            ),
        ] {
            assert_eq!(text(kind, &answer), expected);
        }
    }

    #[test]
    fn a_problem_names_the_argument() {
        let body = json!({
            "detail": "the image cannot be decoded",
            "errors": [{"field": "image", "detail": "the image cannot be decoded"}],
        });
        let body = body.to_string();
        assert_eq!(problem(body.as_bytes(), false), "the image cannot be decoded");
        assert_eq!(problem(b"x", true), "the server gave no reason");
        let body =
            json!({"detail": "wrong", "errors": [{"field": "images[2]", "detail": "is broken"}]});
        assert_eq!(problem(body.to_string().as_bytes(), true), "wrong\npaths[2]: is broken");
    }
}
