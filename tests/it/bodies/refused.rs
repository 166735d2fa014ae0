//! What is refused: the status, the path of the field, which is the same in every encoding, and the words that help.

use super::{Sent, file, form, json, part, text, typed};
use crate::support::{TestApp, base64, png};

struct Refused {
    sent: Sent,
    status: u16,
    /// The path of the first field at fault, "" where none is.
    field: String,
    /// Somewhere in the detail.
    words: &'static str,
}

fn bad(sent: Sent, field: impl Into<String>, words: &'static str) -> Refused {
    Refused { sent, status: 400, field: field.into(), words }
}

async fn each_is_refused(cases: Vec<Refused>) {
    let app = TestApp::start();
    let mut failures = Vec::new();
    for (number, case) in cases.into_iter().enumerate() {
        let shown = String::from_utf8_lossy(&case.sent.body).chars().take(300).collect::<String>();
        let path = case.sent.path.clone();
        let answer = case.sent.to(&app).await;
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let field = problem["errors"][0]["field"].as_str().unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        let has_words = detail.contains(case.words);
        if answer.status != case.status || field != case.field || !has_words {
            failures.push(format!("{number} {path} {shown}: {} {}", answer.status, answer.text()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn picture() -> String {
    base64(&png(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_likely_field_is_named_in_every_encoding() {
    let mut cases = Vec::new();
    for (path, name, ours) in [
        ("/caption", "image_url", "`image`"),
        ("/caption", "max_length", "`max_new_tokens`"),
        ("/caption", "max_tokens", "`max_new_tokens`"),
        ("/caption", "beam_size", "`num_beams`"),
        ("/caption", "temp", "`temperature`"),
        ("/caption", "text", "`prompt`"),
        ("/caption", "nun_beams", "`num_beams`"),
        ("/caption", "numBeams", "`num_beams`"),
        ("/vqa", "query", "`question`"),
        ("/vqa", "questions[]", "`questions` (repeated"),
        ("/vqa", "choices", "`candidates`"),
        ("/vqa", "candidates[0]", "`candidates` (repeated"),
        ("/similarity", "texts[]", "`texts` (repeated"),
        ("/similarity", "captions", "`texts`"),
        ("/similarity", "image_urls", "`images`"),
        ("/embeddings", "input", "`text`"),
        ("/embeddings", "normalise", "`normalize`"),
    ] {
        cases.push(bad(json(path, &format!(r#"{{"{name}": "a"}}"#)), name, ours));
        cases.push(bad(json(path, &format!(r#"{{"{name}": null}}"#)), name, ours));
        cases.push(bad(form(path, &[file("image", &png(1)), text(name, "a")]), name, ours));
        let query = form_urlencoded(name);
        cases.push(bad(typed(&format!("{path}?{query}=a"), "image/png", png(1)), name, ours));
        let in_batch = format!("inputs[0].{name}");
        let item = format!(r#"{{"inputs": [{{"{name}": "a"}}]}}"#);
        cases.push(bad(json(&format!("{path}/batch"), &item), in_batch, ours));
    }
    each_is_refused(cases).await;
}

fn form_urlencoded(name: &str) -> String {
    name.replace('[', "%5B").replace(']', "%5D")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_a_misplaced_field_says_where_it_belongs() {
    let image = picture();
    let item = |more: &str| format!(r#"{{"inputs": [{{"image": "{image}", {more}}}]}}"#);
    each_is_refused(vec![
        bad(
            json("/caption/batch", &item(r#""model": "a""#)),
            "inputs[0].model",
            "next to `inputs`",
        ),
        bad(
            json("/caption/batch", &item(r#""stream": true"#)),
            "inputs[0].stream",
            "only single calls can be streamed",
        ),
        bad(
            json("/caption/batch", r#"{"inputs": [], "stream": true}"#),
            "stream",
            "only single calls can be streamed",
        ),
        bad(json("/caption", r#"{"inputs": []}"#), "inputs", "/batch"),
        bad(form("/caption/batch", &[text("inputs", "[]")]), "inputs", "application/json"),
        bad(
            form("/caption/batch", &[text("inputs[0][image]", "a")]),
            "inputs[0][image]",
            "application/json",
        ),
        bad(json("/caption/batch", r#"{"inputs": null}"#), "inputs", "is needed"),
        bad(json("/caption/batch", "{}"), "inputs", "is needed"),
        bad(form("/caption", &[file("file", &png(1))]), "file", "named image"),
        bad(
            form("/caption", &[file("image", &png(1)), file("prompt", b"a")]),
            "prompt",
            "named image",
        ),
        bad(
            form("/caption", &[file("image", &png(1)), file("image", &png(2))]),
            "image",
            "given 2 times",
        ),
        bad(
            form(
                "/similarity",
                &[file("image", &png(1)), file("image", &png(2)), text("text", "a")],
            ),
            "image",
            "repeat images",
        ),
        bad(
            form("/similarity", &[file("image", &png(1)), text("text", "a"), text("text", "b")]),
            "text",
            "repeat texts",
        ),
        bad(
            typed("/vqa?question=a&question=b", "image/png", png(1)),
            "question",
            "repeat questions",
        ),
        bad(json("/caption?num_beams=2", r#"{"image": "a"}"#), "", "query string"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_missed_in_every_encoding() {
    let caption = |sent| bad(sent, "image", "is needed");
    each_is_refused(vec![
        caption(json("/caption", "{}")),
        caption(json("/caption", r#"{"image": null}"#)),
        caption(form("/caption", &[text("prompt", "a")])),
        caption(form("/caption", &[text("image", ""), text("prompt", "a")])),
        caption(form(
            "/caption",
            &[part(
                b"name=\"image\"; filename=\"\"\r\nContent-Type: application/octet-stream",
                b"",
            )],
        )),
        caption(form("/caption", &[part(b"name=\"image\"\r\nContent-Type: image/png", b"")])),
        caption(typed("/caption", "application/octet-stream", "")),
        caption(typed("/caption?image=", "", "")),
        bad(json("/vqa", r#"{"image": null, "question": "a"}"#), "image", "is needed"),
        bad(
            json("/similarity", r#"{"text": "a", "image": null, "images": null}"#),
            "image",
            "needed",
        ),
        bad(form("/vqa", &[file("image", &png(1)), text("question", "")]), "question", "needed"),
        bad(typed("/vqa?question=&questions=", "", png(1)), "question", "needed"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_bytes_is_called_empty_in_every_encoding() {
    let undecodable = |sent, field: &str| Refused {
        sent,
        status: 422,
        field: field.to_owned(),
        words: "the file is empty; send the bytes of a",
    };
    let empty = "the file is empty; send the bytes of a";
    let (image, rank) = (file("image", &png(1)), text("text", "a"));
    let three = |name: &str| [file(name, &png(1)), file(name, b""), file(name, b"")];
    each_is_refused(vec![
        undecodable(form("/caption", &[file("image", b"")]), "image"),
        undecodable(form("/vqa", &[file("image", b""), text("question", "a")]), "image"),
        undecodable(typed("/caption", "image/png", ""), "image"),
        undecodable(typed("/embeddings?text=a&type=multimodal", "image/png", ""), "image"),
        undecodable(form("/similarity", &[three("images").concat(), rank.clone()]), "images[1]"),
        undecodable(form("/rank", &[three("images").concat(), rank]), "images[1]"),
        bad(json("/caption", r#"{"image": ""}"#), "image", empty),
        bad(json("/caption", r#"{"image": "data:image/png;base64,"}"#), "image", empty),
        bad(form("/caption", &[text("image", "data:;base64,")]), "image", empty),
        bad(
            json("/similarity", r#"{"images": ["eA==", "", ""], "text": "a"}"#),
            "images[1]",
            empty,
        ),
        bad(form("/caption", &[image, file("image", b"")]), "image", "given 2 times"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_bytes_keeps_its_place_in_a_batch() {
    let app = TestApp::start();
    let images =
        [file("image", &png(1)), file("image", b""), file("image", &png(2)), file("image", b"")];
    for (path, field) in [("/caption/batch", None), ("/vqa/batch", Some(text("question", "a")))] {
        let parts = images.iter().cloned().chain(field).collect::<Vec<_>>();
        let answer = form(path, &parts).to(&app).await.ok();
        let results = answer["results"].as_array().unwrap();
        assert_eq!((results.len(), &answer["failed"]), (4, &serde_json::json!(2)), "{answer}");
        for number in [1, 3] {
            let error = &results[number]["error"];
            assert_eq!(error["code"], "undecodable_image", "{answer}");
            let field = format!("inputs[{number}].image");
            assert_eq!(error["errors"][0]["field"], field, "{answer}");
        }
        let alone = path.trim_end_matches("/batch");
        let fields = parts[4..].iter().cloned();
        let second: Vec<_> = [images[2].clone()].into_iter().chain(fields).collect();
        let mut second = form(alone, &second).to(&app).await.ok();
        second.as_object_mut().unwrap().remove("model");
        assert_eq!(results[2], second, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_list_in_a_form_field_leads_to_repeated_fields() {
    let repeat = |sent, field: &str| bad(sent, field, "once for each value");
    let image = || file("image", &png(1));
    each_is_refused(vec![
        repeat(form("/classify", &[image(), text("labels", r#"["a cat","a dog"]"#)]), "labels"),
        repeat(form("/classify", &[image(), text("labels", r#" ["a cat"] "#)]), "labels"),
        repeat(typed("/vqa?questions=[%22a%22]", "", png(1)), "questions"),
        repeat(form("/similarity", &[image(), text("texts", "[1, 2]")]), "texts"),
        repeat(form("/caption", &[image(), text("bad_words", r#"["cat"]"#)]), "bad_words"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_images_lead_to_the_batch_or_the_list() {
    let image = || file("image", &png(1));
    let many = |name: &str, count: usize| vec![file(name, &png(1)); count];
    let batch = "this path followed by /batch";
    each_is_refused(vec![
        bad(form("/caption", &many("image", 2)), "image", batch),
        bad(form("/caption", &many("image", 17)), "image", batch),
        bad(form("/caption", &many("images", 2)), "images", batch),
        bad(json("/caption", r#"{"images": ["eA=="]}"#), "images", batch),
        bad(form("/caption", &[image(), file("photo", &png(1))]), "photo", batch),
        bad(
            form("/caption/batch", &[file("photo", &png(1))]),
            "photo",
            "repeated, for several inputs",
        ),
        bad(
            json("/caption/batch", r#"{"inputs": [], "images": []}"#),
            "images",
            "each input has one",
        ),
        bad(form("/similarity", &[image(), image(), text("text", "a")]), "image", "repeat images"),
        bad(form("/similarity", &[file("photo", &png(1))]), "photo", "or images, repeated"),
        bad(
            form("/caption", &[text("image", "demo/scenes/two-cats.png")]),
            "image",
            "-F image=@FILE",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_stays_strict_about_types() {
    let image = picture();
    let caption = |more: &str| json("/caption", &format!(r#"{{"image": "{image}", {more}}}"#));
    each_is_refused(vec![
        bad(caption(r#""do_sample": "true""#), "do_sample", "expected true or false"),
        bad(caption(r#""do_sample": 1"#), "do_sample", "expected true or false"),
        bad(caption(r#""num_beams": "2""#), "num_beams", "an integer from 1 to 8"),
        bad(caption(r#""num_beams": true"#), "num_beams", "an integer from 1 to 8"),
        bad(caption(r#""num_beams": 1.5"#), "num_beams", "an integer from 1 to 8"),
        bad(caption(r#""prompt": """#), "prompt", "non-empty"),
        bad(caption(r#""prompt": 5"#), "prompt", "a non-empty string"),
        bad(caption(r#""prompt": ["a"]"#), "prompt", "a non-empty string"),
        bad(caption(r#""early_stopping": "true""#), "early_stopping", "never"),
        bad(json("/caption", r#"{"image": {"url": "a"}}"#), "image", "an image value"),
        bad(json("/caption", r#"{"image": ["a"]}"#), "image", "an image value"),
        bad(json("/caption", r#"{"image": ""}"#), "image", "empty"),
        bad(json("/caption", r#"{"image": "  \n"}"#), "image", "empty"),
        bad(json("/caption", r#"{"image": "iVBORw0KGgo=="}"#), "image", "padding"),
        bad(
            json("/caption", r#"{"image": "data:image/png,abc"}"#),
            "image",
            "data:<type>;base64,<data>",
        ),
        bad(json("/caption", r#"{"image": "cat.png"}"#), "image", "base64"),
        bad(
            json("/similarity", &format!(r#"{{"image": "{image}", "texts": ["a", null]}}"#)),
            "texts[1]",
            "null",
        ),
        bad(json("/similarity", r#"{"images": [null], "text": "a"}"#), "images[0]", "null"),
        bad(
            json("/vqa", &format!(r#"{{"image": "{image}", "questions": []}}"#)),
            "questions",
            "at least one",
        ),
        bad(json("/caption/batch", r#"{"inputs": [null]}"#), "inputs[0]", "expected an object"),
        bad(
            json("/caption/batch", r#"{"inputs": [{"num_beams": "2"}]}"#),
            "inputs[0].num_beams",
            "an integer",
        ),
        bad(typed("/caption", "application/json", "\u{feff}\u{feff}{}"), "", "not valid JSON"),
        bad(typed("/caption", "application/json", b"\xff\xfe{\0}\0".to_vec()), "", "UTF-16"),
        bad(
            typed("/caption", "application/json", b"{\"prompt\": \"caf\xe9\"}".to_vec()),
            "",
            "JSON",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_and_queries_refuse_what_they_cannot_read() {
    let caption =
        |name: &str, value: &str| form("/caption", &[file("image", &png(1)), text(name, value)]);
    let query = |query: &str| typed(&format!("/caption?{query}"), "image/png", png(1));
    let latin = |content_type: &str| {
        let head = format!("name=\"prompt\"\r\ncontent-type: {content_type}");
        form("/caption", &[file("image", &png(1)), part(head.as_bytes(), b"caf\xe9")])
    };
    let utf8_as_latin = part(
        b"name=\"prompt\"\r\ncontent-type: text/plain; charset=iso-8859-1",
        "\u{e9}".as_bytes(),
    );
    let media_type = |content_type: &str, words| Refused {
        sent: typed("/caption", content_type, "{\"prompt\": \"\u{e9}\"}"),
        status: 415,
        field: String::new(),
        words,
    };
    each_is_refused(vec![
        bad(caption("do_sample", "yes"), "do_sample", "expected true or false"),
        bad(caption("do_sample", " "), "do_sample", "expected true or false"),
        bad(caption("num_beams", "two"), "num_beams", "an integer from 1 to 8"),
        bad(caption("num_beams", "2,3"), "num_beams", "an integer from 1 to 8"),
        bad(caption("num_beams", "null"), "num_beams", "an integer from 1 to 8"),
        bad(caption("num_beams", "9"), "num_beams", "an integer from 1 to 8"),
        bad(caption("prompt", "a\u{0}"), "prompt", "control characters"),
        bad(query("num_beams=9"), "num_beams", "an integer from 1 to 8"),
        bad(query("do_sample=yes"), "do_sample", "expected true or false"),
        bad(query("prompt=%FF"), "", "UTF-8"),
        bad(typed("/similarity?texts=a&texts=b%00", "", png(1)), "texts[1]", "control characters"),
        bad(latin("text/plain"), "prompt", "UTF-8"),
        bad(latin("text/plain; charset=iso-8859-1"), "prompt", "charset=utf-8"),
        bad(form("/caption", &[file("image", &png(1)), utf8_as_latin]), "prompt", "charset=utf-8"),
        bad(form("/caption", &[part(b"filename=\"a.png\"", &png(1))]), "", "needs a field name"),
        bad(
            form("/caption", &[part(b"name=\"\"; filename=\"a.png\"", &png(1))]),
            "",
            "needs a field name",
        ),
        bad(form("/caption", &[text(&"a".repeat(65), "1")]), "", "has 65 bytes; at most 64"),
        bad(typed("/caption", "multipart/form-data", "x"), "", "boundary"),
        media_type("application/x-www-form-urlencoded", "-H 'content-type: application/json'"),
        media_type("text/plain", "application/json, multipart/form-data"),
        media_type("application/json; charset=utf-16", "UTF-8"),
        media_type("application/json; charset=iso-8859-1", "UTF-8"),
        media_type("application/json; charset=windows-1252", "UTF-8"),
    ])
    .await;
}
