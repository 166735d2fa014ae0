//! Turns the JSON answer of a route into what a language model reads: a few lines of text, and the JSON as structured
//! content. No picture is sent back; the text has the picture's id, by which later calls can name it.

use std::fmt::Write as _;

use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::Value;

use super::service::Answer;
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

/// Returns the text of a problem document, with the arguments at fault.
pub(super) fn problem(answer: &Answer, has_paths: bool) -> String {
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    if let Some(after) = answer.retry_after {
        return format!("the server is busy; call again in {} seconds", after.as_secs().max(1));
    }
    if has_paths && problem["code"] == "image_not_found" {
        let text = "the server has dropped some of these pictures from its cache; give fewer pictures, or let the user raise \
                    images.pixel_cache_bytes";
        return text.to_owned();
    }
    let Some(detail) = problem["detail"].as_str() else {
        return "the server gave no reason".to_owned();
    };
    // With files, `image` is `path` and `images` is `paths`.
    let renamed = |name: &str| match name.strip_prefix("image").filter(|_| has_paths) {
        Some(rest) => format!("path{rest}"),
        None => name.to_owned(),
    };
    let errors = list(&problem["errors"]).iter();
    let errors = errors
        .map(|error| format!("{}: {}", renamed(string(&error["field"])), string(&error["detail"])));
    let errors: Vec<String> = errors.collect();
    if errors.is_empty() { detail.to_owned() } else { errors.join("\n") }
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
                let pair = format!("{}: {}", string(&found["question"]), string(&found["answer"]));
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
                let id = usize::try_from(result["index"].as_u64().unwrap_or_default());
                let id = id.map(|index| string(&answer["images"][index]["id"])).unwrap_or_default();
                let named = [string(&result["path"]), string(&result["text"]), id];
                let name = named.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
                let name = format!("{}. {name}", place + 1);
                line(
                    &mut text,
                    &name,
                    &[("match", &result["match"]), ("cosine", &result["cosine"])],
                );
            }
        }
    }
    // Of several pictures, each line has its own name.
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
    use std::time::Duration;

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
                "how many?: 2\nPicture: sha256:12",
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
                "1. e.jpg (cosine 0.500)\n2. sha256:12 (cosine 0.100)",
            ),
        ] {
            assert_eq!(text(kind, &answer), expected);
        }
    }

    #[test]
    fn a_problem_names_the_argument() {
        let failed = |body: &Value, retry_after| Answer {
            is_success: false,
            retry_after,
            body: body.to_string().into(),
        };
        let body = json!({
            "detail": "image: it cannot be decoded",
            "errors": [{"field": "image", "detail": "it cannot be decoded"}],
        });
        assert_eq!(problem(&failed(&body, None), false), "image: it cannot be decoded");
        assert_eq!(problem(&failed(&body, None), true), "path: it cannot be decoded");
        let body = json!({"detail": "x", "errors": [
            {"field": "images[2]", "detail": "is broken"}, {"field": "text", "detail": "is empty"},
        ]});
        assert_eq!(problem(&failed(&body, None), true), "paths[2]: is broken\ntext: is empty");
        assert_eq!(problem(&failed(&json!({"detail": "too much"}), None), true), "too much");
        assert_eq!(problem(&failed(&json!(1), None), true), "the server gave no reason");
        let after = Some(Duration::from_secs(3));
        let busy = problem(&failed(&json!({"detail": "overloaded"}), after), false);
        assert_eq!(busy, "the server is busy; call again in 3 seconds");
    }
}
