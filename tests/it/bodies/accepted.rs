//! Spellings of one request: all of a table have the same answer.

use super::{Sent, all_answer_alike, file, form, json, part, text, typed};
use crate::support::{TestApp, base64, png};

/// An image value wrapped after so many characters.
fn wrapped(value: &str, width: usize, end: &str) -> String {
    let lines = value.as_bytes().chunks(width).map(String::from_utf8_lossy);
    lines.map(|line| line.into_owned() + end).collect()
}

/// Beams and a prompt for the image of mark 3.
const FIELDS: &str = r#""prompt": "a cat", "num_beams": 2, "do_sample": false"#;

/// The part that an HTML form sends for a file input without a selection.
fn unselected(name: &str) -> Vec<u8> {
    let head = format!("name=\"{name}\"; filename=\"\"\r\nContent-Type: application/octet-stream");
    part(head.as_bytes(), b"")
}

fn caption_json(image: &str) -> Sent {
    json("/caption", &format!(r#"{{"image": "{image}", {FIELDS}}}"#))
}

fn caption_typed(content_type: &str) -> Sent {
    typed("/caption", content_type, caption_json(&base64(&png(3))).body)
}

fn caption_form(image: Vec<u8>) -> Sent {
    form("/caption", &[text("prompt", "a cat"), text("num_beams", "2"), image])
}

fn caption_fields(fields: &[(&str, &str)]) -> Sent {
    let mut parts: Vec<_> = fields.iter().map(|(name, value)| text(name, value)).collect();
    parts.push(file("image", &png(3)));
    form("/caption", &parts)
}

fn caption_query(query: &str) -> Sent {
    typed(&format!("/caption?{query}"), "image/png", png(3))
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_read_in_every_harmless_spelling() {
    let app = TestApp::start();
    let image = base64(&png(3));
    let url_safe = image.replace('+', "-").replace('/', "_");
    let bare = image.trim_end_matches('=');
    assert_ne!(url_safe, image, "the picture has a character in which the alphabets differ");
    let body = caption_json(&image).body;
    let with =
        |more: &str| json("/caption", &format!(r#"{{"image": "{image}", {FIELDS}, {more}}}"#));
    all_answer_alike(
        &app,
        vec![
            ("plain", caption_json(&image)),
            (
                "a byte order mark",
                typed("/caption", "application/json", [&b"\xef\xbb\xbf"[..], &*body].concat()),
            ),
            (
                "white space around",
                typed(
                    "/caption",
                    "application/json",
                    [&b"\r\n "[..], &*body, b"\r\n\r\n"].concat(),
                ),
            ),
            ("charset utf-8", caption_typed("application/json; charset=utf-8")),
            ("charset UTF-8, quoted", caption_typed("application/json; charset=\"UTF-8\"")),
            ("charset utf8", caption_typed("application/json;charset=utf8")),
            ("charset us-ascii", caption_typed("application/json; charset=us-ascii")),
            ("charset ascii", caption_typed("application/json; charset=ASCII")),
            (
                "charset latin-1, an ASCII body",
                caption_typed("application/json; charset=iso-8859-1"),
            ),
            (
                "charset windows-1252, an ASCII body",
                caption_typed("application/json; charset=windows-1252"),
            ),
            ("an empty charset", caption_typed("application/json; charset=")),
            ("another parameter", caption_typed("application/json; odata=verbose; charset=utf-8")),
            ("upper case", caption_typed("APPLICATION/JSON")),
            ("a structured suffix", caption_typed("application/vnd.api+json")),
            ("text/json", caption_typed("text/json")),
            (
                "null for a list of fields",
                with(r#""model": null, "stream": null, "temperature": null, "seed": null"#),
            ),
            (
                "null for an enumeration",
                with(r#""early_stopping": null, "top_k": null, "top_p": null"#),
            ),
            (
                "an integer with a fraction of zero",
                json(
                    "/caption",
                    &format!(r#"{{"image": "{image}", "prompt": "a cat", "num_beams": 2.0}}"#),
                ),
            ),
            ("no padding", caption_json(bare)),
            ("URL-safe", caption_json(&url_safe)),
            ("URL-safe without padding", caption_json(url_safe.trim_end_matches('='))),
            ("wrapped at 76", caption_json(&wrapped(&image, 76, r"\n"))),
            ("wrapped at 64, CRLF", caption_json(&wrapped(&image, 64, r"\r\n"))),
            ("a line break at the end", caption_json(&format!(r"{image}\n"))),
            ("white space everywhere", caption_json(&wrapped(&image, 1, r" \t"))),
            ("a data URI", caption_json(&format!("data:image/png;base64,{image}"))),
            (
                "a data URI of another type",
                caption_json(&format!("data:image/jpeg;base64,{image}")),
            ),
            ("a data URI without a type", caption_json(&format!("data:;base64,{image}"))),
            (
                "a data URI with parameters",
                caption_json(&format!("data:image/png;name=a.png;charset=utf-8;base64,{image}")),
            ),
            ("a data URI in upper case", caption_json(&format!("DATA:IMAGE/PNG;BASE64,{image}"))),
            (
                "a data URI with white space",
                caption_json(&format!(
                    r"\n data:image/png; base64, {}",
                    wrapped(&image, 76, r"\n")
                )),
            ),
            (
                "a data URI, URL-safe, no padding",
                caption_json(&format!("data:image/png;base64,{}", url_safe.trim_end_matches('='))),
            ),
            ("the id of the image", caption_json(&crate::support::inputs::image_id(&png(3)))),
            (
                "the id in upper case",
                caption_json(&crate::support::inputs::image_id(&png(3)).to_uppercase()),
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_told_apart_as_clients_write_them() {
    let app = TestApp::start();
    let (bytes, value) = (png(3), base64(&png(3)));
    let image = |head: &[u8]| caption_form(part(head, &bytes));
    all_answer_alike(
        &app,
        vec![
            ("JSON", caption_json(&value)),
            ("a file", image(br#"name="image"; filename="a.png""#)),
            (
                "a file with a type",
                image(b"name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png"),
            ),
            (
                "a file of no image's type",
                image(b"name=\"image\"; filename=\"a.txt\"\r\nContent-Type: text/plain"),
            ),
            (
                "a name in Latin-1",
                image(b"name=\"image\"; filename=\"caf\xe9.png\"\r\nContent-Type: image/png"),
            ),
            ("a name in UTF-8", image("name=\"image\"; filename=\"caf\u{e9}.png\"".as_bytes())),
            ("a name in Shift_JIS", image(b"name=\"image\"; filename=\"\x94\x4c.png\"")),
            ("a name of RFC 5987 alone", image(b"name=\"image\"; filename*=utf-8''caf%C3%A9.png")),
            (
                "both names",
                image(b"name=\"image\"; filename=\"caf_.png\"; filename*=utf-8''caf%C3%A9.png"),
            ),
            ("an encoded word", image(b"name=\"image\"; filename=\"=?UTF-8?B?Y2Fmw6kucG5n?=\"")),
            ("a quoted pair", image(br#"name="image"; filename="a\"b\\.png""#)),
            ("a path of Windows", image(br#"name="image"; filename="C:\pictures\cat.png""#)),
            ("semicolons in the name", image(br#"name="image"; filename="a; name=prompt; b.png""#)),
            ("a name without quotes", image(b"name=image; filename=a.png")),
            ("the file name first", image(br#"filename="a.png"; name="image""#)),
            ("upper case", image(br#"NAME="image"; FILENAME="a.png""#)),
            ("an empty file name", image(br#"name="image"; filename="""#)),
            ("no file name, image/png", image(b"name=\"image\"\r\nContent-Type: image/png")),
            (
                "no file name, octet-stream",
                image(b"name=\"image\"\r\ncontent-type: application/octet-stream"),
            ),
            (
                "transfer encoding binary",
                image(b"name=\"image\"; filename=\"a.png\"\r\nContent-Transfer-Encoding: binary"),
            ),
            ("base64 as a text", caption_form(text("image", &value))),
            ("base64 wrapped", caption_form(text("image", &wrapped(&value, 76, "\r\n")))),
            (
                "a data URI as a text",
                caption_form(text("image", &format!("data:image/png;base64,{value}"))),
            ),
            (
                "base64 with a text type",
                caption_form(part(
                    b"name=\"image\"\r\nContent-Type: text/plain; charset=utf-8",
                    value.as_bytes(),
                )),
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_flags_and_numbers_of_forms_and_queries_are_read() {
    let app = TestApp::start();
    let typed_prompt = |content_type: &str| {
        let prompt =
            part(format!("name=\"prompt\"\r\nContent-Type: {content_type}").as_bytes(), b"a cat");
        form("/caption", &[prompt, text("num_beams", "2"), file("image", &png(3))])
    };
    all_answer_alike(&app, vec![
        ("JSON", caption_json(&base64(&png(3)))),
        ("plain", caption_fields(&[("prompt", "a cat"), ("num_beams", "2")])),
        ("text/plain", typed_prompt("text/plain")),
        ("text/plain in UTF-8", typed_prompt("text/plain;charset=UTF-8")),
        ("ASCII declared as Latin-1", typed_prompt("text/plain; charset=ISO-8859-1")),
        ("text/plain in US-ASCII", typed_prompt("text/plain; charset=us-ascii")),
        ("declared as JSON, read as text", typed_prompt("application/json")),
        ("white space around a number", caption_fields(&[("prompt", "a cat"), ("num_beams", " 2\r\n")])),
        ("a fraction of zero", caption_fields(&[("prompt", "a cat"), ("num_beams", "2.0")])),
        ("Python's False", caption_fields(&[("prompt", "a cat"), ("num_beams", "2"), ("do_sample", "False")])),
        ("0", caption_fields(&[("prompt", "a cat"), ("num_beams", "2"), ("do_sample", "0")])),
        ("off", caption_fields(&[("prompt", "a cat"), ("num_beams", "2"), ("stream", "Off")])),
        ("empty parts", caption_fields(&[("prompt", "a cat"), ("num_beams", "2"), ("seed", ""), ("model", ""), ("stream", "")])),
        ("an empty part beside a full one", caption_fields(&[("prompt", ""), ("prompt", "a cat"), ("num_beams", "2")])),
        ("an empty file field", form("/caption", &[
            part(b"name=\"image\"; filename=\"\"\r\nContent-Type: application/octet-stream", b""),
            text("prompt", "a cat"), text("num_beams", "2"), file("image", &png(3)),
        ])),
        ("a query", caption_query("prompt=a+cat&num_beams=2")),
        ("percent-encoding", caption_query("prompt=a%20cat&num_beams=%202%20")),
        ("empty values", caption_query("prompt=a+cat&num_beams=2&seed=&temperature=&model&stream=")),
        ("a Python flag", caption_query("prompt=a+cat&num_beams=2&do_sample=FALSE")),
        ("an id in the query", typed(&format!("/caption?prompt=a+cat&num_beams=2&image={}", crate::support::inputs::image_id(&png(3))), "", "")),
        ("octet-stream", typed("/caption?prompt=a+cat&num_beams=2", "application/octet-stream", png(3))),
        ("no type", typed("/caption?prompt=a+cat&num_beams=2", "", png(3))),
        ("any image type", typed("/caption?prompt=a+cat&num_beams=2", "image/x-anything", png(3))),
        ("empty separators", caption_query("&prompt=a+cat&&num_beams=2&")),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn true_is_true_in_every_spelling() {
    let app = TestApp::start();
    let sampled = |flag: &str| caption_fields(&[("do_sample", flag), ("seed", "7")]);
    let body = format!(r#"{{"image": "{}", "do_sample": true, "seed": 7}}"#, base64(&png(3)));
    let mut cases = vec![("JSON", json("/caption", &body))];
    for flag in ["true", "True", "TRUE", "1", "on", "On", " true\n"] {
        cases.push((flag, sampled(flag)));
        let query = format!("do_sample={}&seed=7", flag.trim());
        cases.push((flag, caption_query(&query)));
    }
    all_answer_alike(&app, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_answers_alike_in_all_encodings() {
    let app = TestApp::start();
    let value = base64(&png(3));
    let vqa = |fields: &str| json("/vqa", &format!(r#"{{"image": "{value}", {fields}}}"#));
    all_answer_alike(&app, vec![
        ("JSON", vqa(r#""question": "how many?""#)),
        ("null beside", vqa(r#""question": "how many?", "questions": null, "candidates": null, "num_beams": null"#)),
        ("parts", form("/vqa", &[file("image", &png(3)), text("question", "how many?")])),
        ("empty lists", form("/vqa", &[file("image", &png(3)), text("question", "how many?"), text("questions", ""), text("candidates", "")])),
        ("a query", typed("/vqa?question=how+many%3F&questions=&candidates=", "image/png", png(3))),
    ]).await;
    all_answer_alike(
        &app,
        vec![
            ("JSON", vqa(r#""questions": ["a, b", "c"], "candidates": ["yes", "no"]"#)),
            (
                "parts",
                form(
                    "/vqa",
                    &[
                        text("questions", "a, b"),
                        text("questions", "c"),
                        text("candidates", "yes"),
                        text("candidates", "no"),
                        file("image", &png(3)),
                    ],
                ),
            ),
            (
                "a query",
                typed(
                    "/vqa?questions=a,+b&candidates=yes&questions=c&candidates=no&question=",
                    "",
                    png(3),
                ),
            ),
        ],
    )
    .await;
    let similarity = |fields: &str| json("/similarity", &format!("{{{fields}}}"));
    all_answer_alike(&app, vec![
        ("JSON", similarity(&format!(r#""image": "{value}", "texts": ["a", "b"], "scores": ["cosine"]"#))),
        ("null beside", similarity(&format!(r#""image": "{value}", "images": null, "text": null, "texts": ["a", "b"], "scores": ["cosine"]"#))),
        ("a list of one image", similarity(&format!(r#""images": ["{value}"], "texts": ["a", "b"], "scores": ["cosine"]"#))),
        ("parts", form("/similarity", &[file("image", &png(3)), text("texts", "a"), text("texts", "b"), text("scores", "cosine")])),
        ("files in a list", form("/similarity", &[file("images", &png(3)), text("texts", "a"), text("texts", ""), text("texts", "b"), text("scores", "cosine"), text("text", "")])),
        ("an empty file input in a list", form("/similarity", &[unselected("images"), file("images", &png(3)), text("texts", "a"), text("texts", "b"), text("scores", "cosine")])),
        ("a query", typed("/similarity?texts=a&texts=b&scores=cosine&images=", "image/png", png(3))),
    ]).await;
    let embeddings = |fields: &str| json("/embeddings", &format!("{{{fields}}}"));
    all_answer_alike(&app, vec![
        ("JSON", embeddings(&format!(r#""image": "{value}", "normalize": false"#))),
        ("null beside", embeddings(&format!(r#""image": "{value}", "normalize": false, "text": null, "type": null, "truncate": null, "encoding_format": null"#))),
        ("parts", form("/embeddings", &[file("image", &png(3)), text("normalize", "False"), text("type", ""), text("text", "")])),
        ("a query", typed("/embeddings?normalize=0&type=&encoding_format=", "image/png", png(3))),
    ]).await;
    all_answer_alike(
        &app,
        vec![
            ("JSON", embeddings(r#""text": "two cats""#)),
            ("parts", form("/embeddings", &[text("text", "two cats"), unselected("image")])),
            ("a query without a body", typed("/embeddings?text=two+cats", "", "")),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_batch_answers_alike_in_all_encodings() {
    let app = TestApp::start();
    let (one, two) = (base64(&png(1)), base64(&png(2)));
    let both = [file("image", &png(1)), file("image", &png(2))].concat();
    for (path, fields, parts, query) in [
        ("/caption/batch", r#""prompt": "a""#, text("prompt", "a"), "prompt=a"),
        ("/vqa/batch", r#""question": "a""#, text("question", "a"), "question=a"),
        (
            "/similarity/batch",
            r#""texts": ["a", "b"]"#,
            [text("texts", "a"), text("texts", "b")].concat(),
            "texts=a&texts=b",
        ),
        ("/embeddings/batch", r#""normalize": false"#, text("normalize", "off"), "normalize=off"),
    ] {
        let inputs = format!(r#""inputs": [{{"image": "{one}"}}, {{"image": "{two}"}}]"#);
        let nulls = format!(
            r#""inputs": [{{"image": "{one}", "{0}": null}}, {{"image": "{two}"}}], "model": null, "image": null"#,
            fields[1..].split('"').next().unwrap_or_default()
        );
        all_answer_alike(
            &app,
            vec![
                ("JSON", json(path, &format!("{{{inputs}, {fields}}}"))),
                ("null in an input and beside", json(path, &format!("{{{nulls}, {fields}}}"))),
                ("a byte order mark", json(path, &format!("\u{feff}{{{inputs}, {fields}}}"))),
                ("parts", form(path, &[both.clone(), parts.clone()])),
                ("the fields first", form(path, &[parts.clone(), both.clone()])),
                (
                    "file inputs without a selection",
                    form(
                        path,
                        &[
                            unselected("image"),
                            both.clone(),
                            parts.clone(),
                            part(b"name=\"image\"\r\nContent-Type: image/png", b""),
                        ],
                    ),
                ),
                (
                    "base64 beside a file",
                    form(path, &[text("image", &one), file("image", &png(2)), parts.clone()]),
                ),
            ],
        )
        .await;
        all_answer_alike(
            &app,
            vec![
                ("JSON", json(path, &format!(r#"{{"inputs": [{{"image": "{one}"}}], {fields}}}"#))),
                ("a raw body", typed(&format!("{path}?{query}&model="), "image/png", png(1))),
            ],
        )
        .await;
    }
}
