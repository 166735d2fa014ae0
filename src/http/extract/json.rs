//! Parses JSON bodies. Also turns the errors that serde reports for JSON and for forms into messages for clients.

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::fields::FromObject;
use super::image_field::OUT_OF_MEMORY;
use super::line::WithoutFields;
use super::request::Request;
use super::unknown;
use crate::engine::Admission;
use crate::http::blocking::Jobs;
use crate::http::error::{ApiError, Code};
use crate::input::{self, InputError};

/// Maximum length in characters of the part of a message that repeats what the client sent. Serde repeats the value that
/// it rejects, which may be a whole image. What is accepted instead is never shortened.
const MAX_DETAIL: usize = 300;
/// Maximum length of a field path in an error, in characters. The path may contain an unknown name of any length that
/// the client sent.
const MAX_FIELD: usize = 128;
/// What errors call the object of a line of a bulk request.
pub(super) const LINE: &str = "this line";

/// U+FEFF in UTF-8. Some editors and Windows tools put it at the start of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Maximum size in bytes of a body that is parsed on the async worker thread. Parsing a body of this size takes less
/// than 0.3 ms; parsing a larger body on that thread would delay other connections.
const INLINE_BYTES: usize = 64 << 10;

/// Parses a JSON body. A large body is parsed by a job of the call, away from the threads that serve connections. `only_ascii` is true if the declared charset is neither ASCII nor UTF-8; in that case, a body with
/// characters outside ASCII is rejected.
///
/// # Errors
/// `invalid_request`, with the field; `unsupported_media_type`; `overloaded` if there is no memory for it.
pub(super) async fn parse_body<R: DeserializeOwned + Send + 'static>(
    body: Bytes,
    only_ascii: bool,
    (jobs, admission): (&Jobs, &Admission),
) -> Result<R, ApiError> {
    if body.len() <= INLINE_BYTES {
        return parse(&body, only_ascii);
    }
    jobs.run(admission, "parsing a body", move |_| parse(&body, only_ascii)).await?
}

fn parse<R: DeserializeOwned>(body: &[u8], only_ascii: bool) -> Result<R, ApiError> {
    if only_ascii && !body.is_ascii() {
        return Err(super::head::not_utf8());
    }
    parse_object(body, &[], "the body")
}

/// Parses a JSON object, without its fields called `skipped`. Errors call the object `whole`, for example "the body".
///
/// # Errors
/// Those of [`parse_body`].
pub(super) fn parse_object<R: DeserializeOwned>(
    body: &[u8],
    skipped: &'static [&'static str],
    whole: &str,
) -> Result<R, ApiError> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff") {
        return Err(ApiError::invalid(format!("{whole} is UTF-16; send JSON in UTF-8")));
    }
    input::probe_for_json(body.len())?;
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let object = WithoutFields { object: &mut deserializer, skipped };
    let FromObject(request) = serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if without_position(&error.to_string()) == OUT_OF_MEMORY {
            return InputError::OutOfMemory { bytes: body.len() as u64 }.into();
        }
        if error.is_data() {
            at_field(&path, &error.to_string(), whole)
        } else {
            not_json(&error, whole)
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error, whole))?;
    Ok(request)
}

/// Deserializes a request from the fields of a multipart body or a query string.
///
/// # Errors
/// `invalid_request`, with the field.
pub(crate) fn parse_form<R: Request>(form: super::form::Form) -> Result<R, ApiError> {
    serde_path_to_error::deserialize(form).map_err(|error| {
        at_field(&error.path().to_string(), &error.inner().to_string(), "the body")
    })
}

fn not_json(error: &serde_json::Error, whole: &str) -> ApiError {
    let message = error.to_string();
    let problem = shorten(without_position(&message), MAX_DETAIL);
    let column = error.column();
    // A line of a bulk request is parsed on its own, so its line number would always be 1.
    let place = match error.line() {
        0 => String::new(),
        _ if whole == LINE => format!(" at column {column}"),
        line => format!(" at line {line} column {column}"),
    };
    ApiError::invalid(format!("{whole} is not valid JSON: {problem}{place}"))
}

/// Converts serde's `message` about the field at `path` into an error for the client. `whole` is what the error calls the
/// object that holds all fields.
fn at_field(path: &str, message: &str, whole: &str) -> ApiError {
    let message = without_position(message);
    let (path, message) = match name_in(message, "duplicate field `")
        .or(name_in(message, "missing field `"))
    {
        Some(name) if message.starts_with("missing") => (join(path, name), "is needed".to_owned()),
        Some(name) => (join(path, name), "given more than once".to_owned()),
        None => {
            let in_input = path.starts_with("inputs[");
            let unknown =
                unknown::explain_unknown_field(message, in_input, &|name| shorten(name, MAX_FIELD));
            (path.to_owned(), unknown.unwrap_or_else(|| as_client_message(message)))
        }
    };
    if path == "." {
        return ApiError::invalid(format!("{whole}: {message}"));
    }
    ApiError::field(Code::InvalidRequest, shorten(&path, MAX_FIELD), message)
}

fn name_in<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    message.strip_prefix(prefix)?.strip_suffix('`')
}

fn join(path: &str, name: &str) -> String {
    if path == "." { name.to_owned() } else { format!("{path}.{name}") }
}

/// Returns `message` without a trailing " at line 1 column 7". The position is not needed, because the error names the
/// field, and encodings other than JSON have no lines.
fn without_position(message: &str) -> &str {
    match message.rfind(" at line ") {
        Some(end) if message[end..].contains(" column ") => &message[..end],
        _ => message,
    }
}

/// Replaces the type names of serde with those of JSON, and shortens what the client sent.
fn as_client_message(message: &str) -> String {
    let Some((given, expected)) = message.rsplit_once(", expected ") else {
        return shorten(message, MAX_DETAIL);
    };
    let given = shorten(given, MAX_DETAIL);
    let expected = match expected {
        "a sequence" => "a list",
        "a boolean" => "true or false",
        object if object.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{given}, expected {expected}")
}

/// Shortens `text` to about `max` characters. Keeps the beginning and the end, because the end says which value is
/// expected.
fn shorten(text: &str, max: usize) -> String {
    let length = text.chars().count();
    if length <= max {
        return text.to_owned();
    }
    let head: String = text.chars().take(max / 2).collect();
    let tail: String = text.chars().skip(length - max / 2).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::generation::GenerationFields;
    use crate::http::routes::caption::{CaptionBatchRequest, CaptionRequest};

    fn fault(body: &str) -> (String, String) {
        let error = parse::<CaptionBatchRequest>(body.as_bytes(), false).unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest);
        let first = error.errors.first().cloned();
        first.map_or((String::new(), error.detail.to_string()), |first| (first.field, first.detail))
    }

    #[test]
    fn faults_are_named_by_their_whole_path() {
        let cases = [
            (
                r#"{"inputs": [{}, {"num_beams": 9}]}"#,
                "inputs[1].num_beams",
                "invalid value: integer `9`, expected an integer from 1 to 8",
            ),
            (r#"{"inputs": [null]}"#, "inputs[0]", "invalid type: null, expected an object"),
            (r#"{"inputs": null}"#, "inputs", "is needed"),
            (r#"{"inputs": [{"stream": true}]}"#, "inputs[0].stream", "unknown field `stream`"),
            (
                r#"{"inputs": [{"prompt": "a", "prompt": "b"}]}"#,
                "inputs[0].prompt",
                "given more than once",
            ),
            (r#"{"inputs": [5]}"#, "inputs[0]", "invalid type: integer `5`, expected an object"),
            (r#"{"inputs": [["a"]]}"#, "inputs[0]", "invalid type: sequence, expected an object"),
            (r#"{"inputs": {}}"#, "inputs", "invalid type: map, expected a list"),
            (r#"{"prompt": "a"}"#, "inputs", "is needed"),
            (
                r#"{"inputs": [{"do_sample": 1}]}"#,
                "inputs[0].do_sample",
                "invalid type: integer `1`, expected true or false",
            ),
        ];
        for (body, field, detail) in cases {
            let (found, words) = fault(body);
            assert_eq!(found, field, "{body}");
            assert!(words.starts_with(detail), "{body}: {words}");
        }
    }

    #[test]
    fn null_is_absent_and_a_byte_order_mark_is_skipped() {
        let body = "\u{feff}{\"prompt\": null, \"model\": null, \"inputs\": [{\"image\": null, \"num_beams\": null, \
                    \"do_sample\": null, \"early_stopping\": null, \"temperature\": null}]}";
        let request = parse::<CaptionBatchRequest>(body.as_bytes(), false).unwrap();
        assert!(request.prompt.is_none() && request.model.is_none());
        let input = &request.inputs[0];
        assert!(input.image.is_none() && input.num_beams.is_none() && input.do_sample.is_none());
        assert!(input.early_stopping.is_none() && input.temperature.is_none());
        assert_eq!(fault("\u{feff}\u{feff}{}").0, "");
        // An unknown name is an error even if its value is null.
        assert_eq!(fault(r#"{"inputs": [{"beams": null}]}"#).0, "inputs[0].beams");
        let utf16 = parse::<CaptionRequest>(b"\xff\xfe{\0}\0", false).unwrap_err();
        assert!(utf16.detail.contains("UTF-16"), "{}", utf16.detail);
    }

    #[test]
    fn a_foreign_charset_is_read_as_long_as_the_body_is_ascii() {
        let (plain, accented) = (br#"{"prompt": "a"}"#, "{\"prompt\": \"\u{e9}\"}");
        assert!(parse::<CaptionRequest>(plain, true).is_ok());
        assert!(parse::<CaptionRequest>(accented.as_bytes(), false).is_ok());
        let refused = parse::<CaptionRequest>(accented.as_bytes(), true).unwrap_err();
        assert_eq!(refused.code, Code::UnsupportedMediaType);
    }

    #[test]
    fn what_is_no_json_says_where() {
        for body in ["", "{", "{\"inputs\": [}", "{\"inputs\": []} x"] {
            let (field, words) = fault(body);
            assert_eq!(field, "", "{body}");
            assert!(words.starts_with("the body is not valid JSON: "), "{body}: {words}");
        }
        assert_eq!(fault("[1]").1, "the body: invalid type: sequence, expected an object");
        assert!(fault(&"[".repeat(100_000)).1.contains("the body"));
    }

    #[test]
    fn control_characters_in_a_name_are_not_repeated() {
        let body = r#"{"a\u001b[31m\u0000": 1}"#;
        let error = parse::<CaptionRequest>(body.as_bytes(), false).unwrap_err();
        assert_eq!(error.errors[0].field, "a\u{fffd}[31m\u{fffd}");
        assert!(
            error.detail.starts_with("a\u{fffd}[31m\u{fffd}: unknown field"),
            "{}",
            error.detail
        );
        assert!(!error.detail.contains(char::is_control), "{}", error.detail);
    }

    #[test]
    fn what_clients_send_is_repeated_only_in_part() {
        let long = "x".repeat(1 << 20);
        let error = format!("{{\"num_beams\": \"{long}\"}}");
        let error = parse::<CaptionRequest>(error.as_bytes(), false).unwrap_err();
        assert!(error.detail.len() < 500, "{}", error.detail.len());
        assert!(error.detail.ends_with("expected an integer from 1 to 8"), "{}", error.detail);
        let body = format!("{{\"{long}\": 1}}");
        let error = parse::<CaptionRequest>(body.as_bytes(), false).unwrap_err();
        assert!(error.detail.len() < 1500 && error.errors[0].field.len() < 200);
    }

    #[test]
    fn the_list_of_accepted_fields_is_complete() {
        for name in ["num_beam", &"x".repeat(5000)] {
            let body = format!("{{\"{name}\": 1}}");
            let error = parse::<CaptionRequest>(body.as_bytes(), false).unwrap_err();
            let (_, accepted) = error.detail.rsplit_once("accepted: ").unwrap();
            let accepted: Vec<&str> = accepted.split(", ").collect();
            let known = |name: &str| accepted.contains(&name);
            assert!(GenerationFields::names().all(known), "{}", error.detail);
            assert!(known("image") && known("prompt") && known("explain_layers"), "{accepted:?}");
        }
    }

    #[test]
    fn errors_of_a_line_call_it_so() {
        let fault = |line: &[u8]| {
            let error = parse_object::<CaptionRequest>(line, &[], LINE).unwrap_err();
            error.detail.to_string()
        };
        assert_eq!(fault(b"no"), "this line is not valid JSON: expected ident at column 2");
        assert_eq!(fault(b"[1]"), "this line: invalid type: sequence, expected an object");
        assert!(fault(b"\xff\xfe{\0}\0").starts_with("this line is UTF-16"));
        let body = parse::<CaptionRequest>(b"{\n  x", false).unwrap_err();
        assert!(body.detail.ends_with("at line 2 column 3"), "{}", body.detail);
    }
}
