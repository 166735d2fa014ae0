//! Error messages for unknown fields, with a suggestion of the field that was probably meant.
//!
//! Clients are often written for other APIs (`OpenAI`, Ollama, Hugging Face, Replicate), or with frameworks that add
//! brackets to the names of lists. Serde uses the same words for an unknown field in JSON and in forms, so one function
//! serves all encodings of a request. `json` calls this function.

use std::fmt::Write;

/// Groups of names that other APIs use, each with the fields of this API that may be meant. The message suggests the
/// first of these fields that the endpoint has.
const SYNONYMS: &[(&[&str], &[&str])] = &[
    (
        &[
            "image_url",
            "image_uri",
            "image_b64",
            "image_base64",
            "base64_image",
            "image_data",
            "image_bytes",
            "image_file",
            "image_path",
            "image_id",
            "input_image",
            "img",
            "img_url",
            "file",
            "photo",
            "picture",
            "pic",
            "url",
            "uri",
            "src",
            "data",
            "upload",
            "base64",
            "b64",
            "pixel_values",
            "media",
        ],
        &["image", "images"],
    ),
    (
        &[
            "files",
            "imgs",
            "image_urls",
            "photos",
            "pictures",
            "urls",
            "image_files",
            "img_list",
            "image_list",
        ],
        &["images", "image"],
    ),
    (
        &[
            "prompt_text",
            "text_prompt",
            "prefix",
            "text",
            "context",
            "input_text",
            "caption_prefix",
            "prompts",
        ],
        &["prompt", "question", "text"],
    ),
    (
        &[
            "question_text",
            "query",
            "prompt",
            "q",
            "ask",
            "text",
            "input_text",
            "text_input",
            "user_prompt",
        ],
        &["question", "text", "prompt"],
    ),
    (&["queries", "prompts", "qs"], &["questions", "texts"]),
    (
        &[
            "caption",
            "text_input",
            "input_text",
            "sentence",
            "query",
            "description",
            "label",
            "prompt",
            "input",
            "inputs",
            "content",
            "question",
        ],
        &["text", "prompt", "question"],
    ),
    (
        &[
            "captions",
            "sentences",
            "descriptions",
            "labels",
            "candidate_labels",
            "text_list",
            "candidates",
            "classes",
            "documents",
            "prompts",
            "queries",
            "questions",
        ],
        &["texts", "candidates", "questions"],
    ),
    (
        &[
            "labels",
            "choices",
            "answers",
            "options",
            "candidate_labels",
            "answer_list",
            "answer_candidates",
            "texts",
        ],
        &["candidates"],
    ),
    (
        &[
            "max_length",
            "max_tokens",
            "max_new_token",
            "max_completion_tokens",
            "max_output_tokens",
            "num_predict",
            "max_len",
            "new_tokens",
            "n_predict",
        ],
        &["max_new_tokens"],
    ),
    (&["min_length", "min_tokens", "min_len", "min_new_token"], &["min_new_tokens"]),
    (
        &["beams", "beam_size", "beam_width", "n_beams", "beam", "num_beam", "use_beam_search"],
        &["num_beams"],
    ),
    (
        &["n", "num_captions", "best_of", "num_return", "num_sequences", "num_samples", "top_n"],
        &["num_return_sequences"],
    ),
    (&["sample", "sampling", "use_nucleus_sampling", "nucleus"], &["do_sample"]),
    (&["temp"], &["temperature"]),
    (&["topk", "k"], &["top_k"]),
    (&["topp", "p", "nucleus_p"], &["top_p"]),
    (&["minp"], &["min_p"]),
    (&["typical", "typicalp", "typical_mass"], &["typical_p"]),
    (
        &["bad_words_ids", "suppress_tokens", "banned_words", "forbidden_words", "exclude_words"],
        &["bad_words"],
    ),
    (&["stop", "stops", "stop_sequences", "stop_sequence", "stop_words"], &["stop_strings"]),
    (&["renormalise_logits", "renormalize"], &["renormalize_logits"]),
    (
        &["repeat_penalty", "rep_pen", "frequency_penalty", "presence_penalty"],
        &["repetition_penalty"],
    ),
    (&["random_seed", "rng_seed", "manual_seed"], &["seed"]),
    (&["model_id", "model_name", "engine"], &["model"]),
    (&["score", "score_types", "metrics", "mode", "match_head", "itm", "itc"], &["scores"]),
    (&["format", "output_format", "response_format"], &["encoding_format"]),
    (&["kind", "mode", "modality", "input_type", "task"], &["type"]),
    (&["normalise", "normalized", "normalize_embeddings", "norm"], &["normalize"]),
    (&["truncation", "auto_truncate"], &["truncate"]),
    (&["items", "requests", "batch", "input", "instances"], &["inputs"]),
    (&["streaming", "sse"], &["stream"]),
];

/// Maximum length in bytes of a name for which a suggestion is looked up. This bounds the time to compute edit
/// distances.
const MAX_COMPARED: usize = 40;

/// Rewrites `message`, a serde error about an unknown field, for clients. Returns `None` if the message is about
/// something else. `in_input` is true if the field belongs to one input of a batch. `shorten` shortens the client's name
/// for the field; the accepted names are never shortened.
pub(super) fn explain_unknown_field(
    message: &str,
    in_input: bool,
    shorten: &dyn Fn(&str) -> String,
) -> Option<String> {
    let (name, expected) = message.strip_prefix("unknown field `")?.rsplit_once("`, expected ")?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let mut words = format!("unknown field `{}`", shorten(name));
    if let Some(advice) = advice(name, &known, in_input) {
        words.push_str(advice);
    } else if let Some(field) = closest_field(name, &known) {
        let repeated = if name.contains('[') { " (repeated, without brackets)" } else { "" };
        let _ = write!(words, ", did you mean `{field}`{repeated}?");
    } else {
        words.push(';');
    }
    let _ = write!(words, " accepted: {}", known.join(", "));
    Some(words)
}

/// Returns advice for a field that exists in this API, but not in this object; `None` for all other fields.
fn advice(name: &str, known: &[&str], in_input: bool) -> Option<&'static str> {
    let in_batch = in_input || known.contains(&"inputs");
    match name {
        "model" if in_input => Some(": move it next to `inputs`, where it applies to all;"),
        "stream" if in_batch => Some(": only single calls can be streamed;"),
        "inputs" if known.contains(&"image") => {
            Some(": send a list of inputs to the same path followed by /batch;")
        }
        "images" if !known.contains(&"images") && known.contains(&"image") => Some(if in_batch {
            ": each input has one `image`;"
        } else {
            ": send one picture as `image`; to send several, use this path followed by /batch;"
        }),
        other if known.contains(&"inputs") && other.starts_with("inputs[") => {
            Some(": send a list of inputs as application/json;")
        }
        _ => None,
    }
}

/// Returns the known field that `name` probably means: the same name in another spelling, or else a field that
/// [`SYNONYMS`] suggests, or else the field with the smallest edit distance, if that is at most 2.
fn closest_field<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > MAX_COMPARED {
        return None;
    }
    let name = to_snake_case(name);
    let find = |wanted: &str| known.iter().copied().find(|field| *field == wanted);
    if let Some(field) = find(&name) {
        return Some(field);
    }
    let rows = SYNONYMS.iter().filter(|(names, _)| names.contains(&&*name));
    if let Some(field) = rows.flat_map(|(_, fields)| *fields).find_map(|field| find(field)) {
        return Some(field);
    }
    let distances = known.iter().map(|field| (distance(&name, field), *field));
    let (least, field) = distances.min()?;
    // Allow only one edit in a short name: two edits turn almost any short word into another.
    let allowed = if name.len() < 5 { 1 } else { 2 };
    (least <= allowed).then_some(field)
}

/// Converts `maxNewTokens`, `Max-New-Tokens`, `texts[]` or `texts[0]` to the spelling of this API (`max_new_tokens`,
/// `texts`).
fn to_snake_case(name: &str) -> String {
    let name = name.split_once('[').map_or(name, |(name, _)| name).trim();
    let mut plain = String::with_capacity(name.len() + 4);
    let mut after_lower = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && after_lower {
            plain.push('_');
        }
        after_lower = letter.is_ascii_lowercase() || letter.is_ascii_digit();
        plain.push(if matches!(letter, '-' | ' ' | '.') {
            '_'
        } else {
            letter.to_ascii_lowercase()
        });
    }
    plain
}

/// Returns the Levenshtein distance: the smallest number of insertions, deletions and replacements of characters that
/// turn one word into the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, known) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *known);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTION: &[&str] = &[
        "model",
        "stream",
        "image",
        "prompt",
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "num_return_sequences",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words",
        "stop_strings",
        "length_penalty",
        "early_stopping",
        "renormalize_logits",
        "seed",
    ];
    const VQA: &[&str] =
        &["model", "image", "question", "questions", "candidates", "max_new_tokens", "num_beams"];
    const SIMILARITY: &[&str] = &["model", "image", "images", "text", "texts", "scores"];
    const EMBEDDINGS: &[&str] =
        &["model", "image", "text", "type", "normalize", "truncate", "encoding_format"];

    #[test]
    fn names_of_other_apis_lead_to_ours() {
        let cases = [
            (CAPTION, "image_url", Some("image")),
            (CAPTION, "images", Some("image")),
            (CAPTION, "file", Some("image")),
            (CAPTION, "max_length", Some("max_new_tokens")),
            (CAPTION, "maxNewTokens", Some("max_new_tokens")),
            (CAPTION, "num_predict", Some("max_new_tokens")),
            (CAPTION, "beams", Some("num_beams")),
            (CAPTION, "n", Some("num_return_sequences")),
            (CAPTION, "temp", Some("temperature")),
            (CAPTION, "stop", Some("stop_strings")),
            (CAPTION, "bad_words_ids", Some("bad_words")),
            (CAPTION, "text", Some("prompt")),
            (CAPTION, "question", Some("prompt")),
            (CAPTION, "promt", Some("prompt")),
            (CAPTION, "Image", Some("image")),
            (CAPTION, "top-p", Some("top_p")),
            (CAPTION, "xyz", None),
            (CAPTION, "", None),
            (VQA, "query", Some("question")),
            (VQA, "text", Some("question")),
            (VQA, "prompt", Some("question")),
            (VQA, "questions[]", Some("questions")),
            (VQA, "choices", Some("candidates")),
            (VQA, "labels", Some("candidates")),
            (SIMILARITY, "texts[]", Some("texts")),
            (SIMILARITY, "texts[0]", Some("texts")),
            (SIMILARITY, "images[url]", Some("images")),
            (SIMILARITY, "caption", Some("text")),
            (SIMILARITY, "captions", Some("texts")),
            (SIMILARITY, "files", Some("images")),
            (SIMILARITY, "score", Some("scores")),
            (EMBEDDINGS, "input", Some("text")),
            (EMBEDDINGS, "inputs", Some("text")),
            (EMBEDDINGS, "texts", Some("text")),
            (EMBEDDINGS, "normalise", Some("normalize")),
            (EMBEDDINGS, "kind", Some("type")),
        ];
        for (known, name, expected) in cases {
            assert_eq!(closest_field(name, known), expected, "{name}");
        }
    }

    #[test]
    fn each_target_of_the_table_is_a_field_somewhere() {
        for (names, fields) in SYNONYMS {
            for field in *fields {
                let all = [CAPTION, VQA, SIMILARITY, EMBEDDINGS, &["inputs"]];
                assert!(all.iter().any(|known| known.contains(field)), "{field} for {names:?}");
            }
        }
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (one, other, expected) in
            [("", "", 0), ("a", "", 1), ("", "abc", 3), ("kitten", "sitting", 3), ("é", "e", 1)]
        {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_message_keeps_the_accepted_names_and_says_where_a_field_belongs() {
        let serde = "unknown field `texts[]`, expected one of `image`, `text`, `texts`";
        let explain =
            |message: &str, in_input| explain_unknown_field(message, in_input, &str::to_owned);
        let words = explain(serde, false).unwrap();
        assert_eq!(
            words,
            "unknown field `texts[]`, did you mean `texts` (repeated, without brackets)? accepted: image, text, texts"
        );
        let odd = explain("unknown field `a`, b`, expected `image` or `inputs`", false).unwrap();
        assert_eq!(odd, "unknown field `a`, b`; accepted: image, inputs");
        let stream = explain("unknown field `stream`, expected `image`", true).unwrap();
        assert!(stream.contains("only single calls can be streamed"), "{stream}");
        let model = explain("unknown field `model`, expected `image`", true).unwrap();
        assert!(model.contains("next to `inputs`"), "{model}");
        let inputs = explain("unknown field `inputs`, expected `image`", false).unwrap();
        assert!(inputs.contains("/batch"), "{inputs}");
        let images = "unknown field `images`, expected `image`";
        let several = explain(images, false).unwrap();
        assert!(several.contains("this path followed by /batch"), "{several}");
        let of_input = explain(images, true).unwrap();
        assert!(of_input.contains("each input has one `image`"), "{of_input}");
        assert_eq!(explain("invalid type: null, expected a list", false), None);
        let long = explain_unknown_field(serde, false, &|_| "short".to_owned()).unwrap();
        assert!(long.starts_with("unknown field `short`"), "{long}");
    }
}
