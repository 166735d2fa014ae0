//! The words of the command line for what the service says in the words of its API: flags instead of fields.

use clap::{Args, Command};
use serde_json::{Map, Value};

use super::args::{
    AskArguments, CaptionArguments, ClassifyArguments, EmbedArguments, GenerationArguments,
    MatchArguments,
};

/// What the server advises its clients, and what helps if the server is part of this command.
const LOAD_A_MODEL: (&str, &str) =
    ("start the server with one (--model)", "name one with --model SRC");

/// Returns the text of a problem that every picture would have. `is_local` says that the models run in this process.
pub(super) fn in_flags(problem: &Map<String, Value>, is_local: bool) -> String {
    let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
    let errors = problem.get("errors").and_then(Value::as_array);
    let errors = errors.into_iter().flatten().filter_map(|error| {
        let (field, detail) = (error.get("field")?.as_str()?, error.get("detail")?.as_str()?);
        let (name, _) = field.split_at(field.find(['.', '[']).unwrap_or(field.len()));
        Some(format!("{}: {detail}", flag(name).unwrap_or_else(|| field.to_owned())))
    });
    let errors: Vec<String> = errors.collect();
    let detail = if errors.is_empty() { text("detail").to_owned() } else { errors.join("; ") };
    let detail = with_flags(&detail);
    let detail = if is_local { detail.replace(LOAD_A_MODEL.0, LOAD_A_MODEL.1) } else { detail };
    format!("{detail} ({})", text("code"))
}

/// Returns the flag of a field of a request; `None` if it has none.
fn flag(field: &str) -> Option<String> {
    if field == "model" {
        return Some("--model".to_owned());
    }
    // The fields of the flags have the names of the fields of requests.
    let arguments = [
        GenerationArguments::augment_args,
        CaptionArguments::augment_args,
        AskArguments::augment_args,
        MatchArguments::augment_args,
        EmbedArguments::augment_args,
        ClassifyArguments::augment_args,
    ];
    arguments.into_iter().find_map(|augment| {
        let command = augment(Command::new(""));
        let found = command.get_arguments().find(|argument| argument.get_id() == field)?;
        found.get_long().map(|long| format!("--{long}"))
    })
}

/// Replaces the names of fields in a sentence. Names of one word, such as `seed`, are left, because they are words as well.
fn with_flags(text: &str) -> String {
    let is_name = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(is_name) {
        let end = rest[begin..].find(|char| !is_name(char)).map_or(rest.len(), |end| begin + end);
        let name = &rest[begin..end];
        let flag = Some(name).filter(|name| name.contains('_')).and_then(flag);
        replaced += &rest[..begin];
        replaced += flag.as_deref().unwrap_or(name);
        rest = &rest[end..];
    }
    replaced + rest
}

/// Returns the line of a picture in a list for `--list`. A name with control characters needs the form of an object, in which
/// they are escaped; so does one that looks like an object.
pub(super) fn list_line(name: &str) -> String {
    if !name.contains(char::is_control) && !name.starts_with('{') {
        return name.to_owned();
    }
    let escape = |text: String, char: char| {
        // JSON lets DEL and the control characters above it pass.
        if char.is_control() {
            text + &format!("\\u{:04x}", char as u32)
        } else {
            text + char.encode_utf8(&mut [0; 4])
        }
    };
    let object = Value::Object(Map::from_iter([("path".to_owned(), name.into())])).to_string();
    object.chars().fold(String::new(), escape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn worded(problem: &Value, is_local: bool) -> String {
        in_flags(problem.as_object().unwrap(), is_local)
    }

    #[test]
    fn fields_become_flags() {
        let detail = "has no effect without do_sample; set do_sample or leave it out";
        let problem = json!({
            "code": "invalid_request",
            "detail": format!("temperature: {detail}"),
            "errors": [{"field": "temperature", "detail": detail}],
        });
        let expected = "--temperature: has no effect without --do-sample; set --do-sample or leave it out (invalid_request)";
        assert_eq!(worded(&problem, true), expected);
        for (field, flag) in [
            ("bad_words[1]", "--bad-word"),
            ("num_beams", "--num-beams"),
            ("questions", "--question"),
            ("labels[0]", "--label"),
            ("model", "--model"),
            ("image", "image"),
        ] {
            let problem = json!({"code": "c", "errors": [{"field": field, "detail": "no"}]});
            assert_eq!(worded(&problem, false), format!("{flag}: no (c)"));
        }
    }

    #[test]
    fn a_missing_model_is_named_where_it_is_loaded() {
        let problem = json!({
            "code": "task_not_loaded",
            "detail": "no vqa model is loaded; start the server with one (--model)",
        });
        let local = "no vqa model is loaded; name one with --model SRC (task_not_loaded)";
        assert_eq!(worded(&problem, true), local);
        assert!(worded(&problem, false).contains("start the server"));
    }

    #[test]
    fn lines_are_read_as_the_same_names() {
        assert_eq!(list_line("a b.png"), "a b.png");
        for name in ["two\nlines", "\u{1b}[31m", "\u{9b}", "\u{7f}", "{a}"] {
            let line = list_line(name);
            assert!(!line.contains(char::is_control), "{line:?}");
            let object: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(object["path"], name);
        }
    }
}
