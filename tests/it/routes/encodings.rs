//! The same request in each of the three encodings, and what each refuses.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use crate::support::inputs::{BOUNDARY, picture};
use crate::support::{Multipart, TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn all_encodings_of_a_request_have_one_answer() {
    let app = TestApp::start();
    let file = png(3);
    let plain = app
        .json("/caption", &json!({"image": base64(&file), "prompt": "a cat", "num_beams": 2}))
        .await
        .ok();
    let uri = format!("data:image/jpeg;base64,{}", base64(&file));
    assert_eq!(
        app.json("/caption", &json!({"image": uri, "prompt": "a cat", "num_beams": 2})).await.ok(),
        plain
    );
    let fields = || Multipart::default().text("prompt", "a cat").text("num_beams", "2");
    assert_eq!(app.multipart("/caption", fields().file("image", &file)).await.ok(), plain);
    assert_eq!(app.multipart("/caption", fields().text("image", &base64(&file))).await.ok(), plain);
    let path = "/caption?prompt=a+cat&num_beams=2";
    for content_type in ["image/jpeg", "application/octet-stream", ""] {
        assert_eq!(app.raw(path, content_type, file.clone()).await.ok(), plain, "{content_type}");
    }
    let id = plain["image"]["id"].as_str().unwrap();
    let by_id = app.raw(&format!("{path}&image={id}"), "", Vec::new()).await.ok();
    assert_eq!(by_id, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_format_is_recognised_by_its_bytes() {
    let app = TestApp::start();
    let formats = [
        ("jpeg", image::ImageFormat::Jpeg),
        ("png", image::ImageFormat::Png),
        ("webp", image::ImageFormat::WebP),
        ("gif", image::ImageFormat::Gif),
        ("bmp", image::ImageFormat::Bmp),
    ];
    for (name, format) in formats {
        let answer = app.raw("/caption", "image/x-whatever", picture(5, 8, 6, format)).await.ok();
        assert_eq!(answer["image"]["format"], name);
        assert_eq!((&answer["image"]["width"], &answer["image"]["height"]), (&json!(8), &json!(6)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_repeat_in_parts_and_in_the_query_string() {
    let app = TestApp::start();
    let parts = Multipart::default()
        .file("images", &png(1))
        .file("images", &png(2))
        .text("texts", "a, b")
        .text("texts", "c");
    let form = app.multipart("/similarity", parts).await.ok();
    let body = json!({"images": [base64(&png(1)), base64(&png(2))], "texts": ["a, b", "c"]});
    assert_eq!(app.json("/similarity", &body).await.ok(), form);
    let raw =
        app.raw("/similarity?texts=a,%20b&texts=c&scores=cosine", "image/png", png(1)).await.ok();
    let body = json!({"image": base64(&png(1)), "texts": ["a, b", "c"], "scores": ["cosine"]});
    assert_eq!(app.json("/similarity", &body).await.ok(), raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_have_the_same_path_in_every_encoding() {
    let app = TestApp::start();
    let parts = Multipart::default().file("image", &png(1)).text("num_beams", "9");
    assert_eq!(
        app.multipart("/caption", parts).await.refused_field(400, "invalid_request"),
        "num_beams"
    );
    let raw = app.raw("/caption?num_beams=9", "image/png", png(1)).await;
    assert_eq!(raw.refused_field(400, "invalid_request"), "num_beams");
    let parts = Multipart::default()
        .file("image", &png(1))
        .text("questions", "a")
        .text("questions", "\u{1}");
    assert_eq!(
        app.multipart("/vqa", parts).await.refused_field(400, "invalid_request"),
        "questions[1]"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_single_field_names_its_plural() {
    let app = TestApp::start();
    let parts =
        Multipart::default().file("image", &png(1)).text("question", "a").text("question", "b");
    let problem = app.multipart("/vqa", parts).await.refused(400, "invalid_request");
    assert_eq!(problem["errors"][0]["field"], "question");
    assert!(problem["detail"].as_str().unwrap().contains("questions"), "{problem}");
    let twice = app.raw("/similarity?text=a&text=b", "image/png", png(1)).await;
    assert!(twice.refused(400, "invalid_request")["detail"].as_str().unwrap().contains("texts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_batch_are_named_as_its_inputs_in_json() {
    let app = TestApp::with(|config| {
        config.http.limits.max_batch_inputs = 2;
        config.http.limits.max_images = 2;
        config.http.input.max_image_bytes = 1000;
    });
    let parts = || Multipart::default().file("image", &png(1));
    let large = app.multipart("/caption/batch", parts().file("image", &[0; 1001])).await;
    assert_eq!(large.refused_field(413, "payload_too_large"), "inputs[1].image");
    let three = parts().file("image", &png(2)).file("image", &png(3));
    let many = app.multipart("/caption/batch", three).await;
    assert_eq!(many.refused_field(422, "batch_too_large"), "inputs");
    assert!(many.text().contains("(limits.max_batch_inputs)"), "{}", many.text());
    let images = (1..=3).fold(Multipart::default(), |parts, mark| parts.file("images", &png(mark)));
    let many = app.multipart("/similarity", images).await;
    assert_eq!(many.refused_field(422, "batch_too_large"), "images");
    assert!(many.text().contains("(limits.max_images)"), "{}", many.text());
    let listed = app.multipart("/caption/batch", parts().text("inputs", "[]")).await;
    assert_eq!(listed.refused_field(400, "invalid_request"), "inputs");
    let query = app.raw("/caption?prompt=%FF", "image/png", png(1)).await;
    query.refused(400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_malformed_form_is_a_400() {
    let app = TestApp::start();
    let cases = [
        Multipart::default().file("image", &png(1)).text("num_beams", "two"),
        Multipart::default().file("image", &png(1)).text("do_sample", "yes"),
        Multipart::default().file("image", &png(1)).text("unknown", "1"),
        Multipart::default().file("file", &png(1)),
        Multipart::default().file("image", &png(1)).file("prompt", b"a"),
        Multipart::default().file("image", &png(1)).file("image", &png(1)),
        Multipart::default().file("", &png(1)),
    ];
    for parts in cases {
        app.multipart("/caption", parts).await.refused(400, "invalid_request");
    }
    let mut cut = Multipart::default().file("image", &png(1)).finish();
    cut.truncate(cut.len() - 20);
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    app.raw("/caption", &content_type, cut).await.refused(400, "invalid_request");
    app.raw("/caption", &content_type, b"no parts at all".to_vec())
        .await
        .refused(400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_malformed_json_is_a_400() {
    let app = TestApp::start();
    for body in
        ["", "{", "[]", "5", "{\"image\": \"a\", \"image\": \"b\"}", "{\"image\": 5}", "{} {}"]
    {
        app.json_text("/caption", body).await.refused(400, "invalid_request");
    }
    app.json_text("/caption", &"[".repeat(100_000)).await.refused(400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_string_belongs_to_raw_bodies_alone() {
    let app = TestApp::start();
    let answer = app.json("/caption?num_beams=2", &json!({"image": base64(&png(1))})).await;
    let problem = answer.refused(400, "invalid_request");
    assert!(problem["detail"].as_str().unwrap().contains("query string"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curls_default_type_gets_the_header_to_add() {
    let app = TestApp::start();
    let answer = app.raw("/caption", "application/x-www-form-urlencoded", b"{}".to_vec()).await;
    let problem = answer.refused(415, "unsupported_media_type");
    assert!(
        problem["detail"].as_str().unwrap().contains("-H 'content-type: application/json'"),
        "{problem}"
    );
    app.raw("/caption", "text/plain", b"{}".to_vec()).await.refused(415, "unsupported_media_type");
    let gzip =
        Request::post("/caption").header("content-encoding", "gzip").body(Body::from(png(1)));
    app.send(gzip.unwrap()).await.refused(415, "unsupported_media_type");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_files_are_bounded_in_every_encoding() {
    let app = TestApp::with(|config| config.http.input.max_image_bytes = 64);
    let file = vec![0; 65];
    let json = app.json("/caption", &json!({"image": base64(&file)})).await;
    assert_eq!(json.refused_field(413, "payload_too_large"), "image");
    let form = app.multipart("/caption", Multipart::default().file("image", &file)).await;
    assert_eq!(form.refused_field(413, "payload_too_large"), "image");
    assert_eq!(form.header("connection"), "close");
    let raw = app.raw("/caption", "image/png", file).await;
    assert_eq!(raw.refused_field(413, "payload_too_large"), "image");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_bounded_in_number_and_size() {
    let app = TestApp::start();
    let files = (0..17).fold(Multipart::default(), |parts, _| parts.file("images", &png(1)));
    app.multipart("/similarity", files.text("text", "a")).await.refused(422, "batch_too_large");
    let texts = (0..257).fold(Multipart::default(), |parts, _| parts.text("texts", "a"));
    app.multipart("/similarity", texts.file("image", &png(1)))
        .await
        .refused(422, "batch_too_large");
    let long = Multipart::default().file("image", &png(1)).text("text", &"a".repeat(17 << 10));
    assert_eq!(
        app.multipart("/similarity", long).await.refused_field(422, "text_too_long"),
        "text"
    );
}
