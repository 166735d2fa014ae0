//! Attacks on work that HTTP does itself: tokenising many texts, and writing large answers.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::app::json_request;
use crate::support::{TestApp, base64, png};

/// A text of 4,000 bytes and forty unknown words, which was the most expensive to tokenise.
fn expensive(number: usize) -> String {
    format!("{}{number}", format!("{}\u{e3f} ", "q".repeat(97)).repeat(39))
}

/// 64 inputs with the same four labels.
fn classify_batch() -> Request<Body> {
    let labels: Vec<String> = (0..4).map(expensive).collect();
    let inputs = vec![json!({"image": base64(&png(1))}); 64];
    json_request("/classify/batch", &json!({"inputs": inputs, "labels": labels, "template": "{}"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_texts_are_tokenised_in_slices_and_each_gives_what_it_gives_alone() {
    let app = TestApp::start();
    let text = |index: usize| match index {
        20 => "a ".repeat(600),
        index => format!("{} {}", "a man with a hat ".repeat(25), "x".repeat(index + 1)),
    };
    let inputs: Vec<Value> = (0..64).map(|index| json!({"text": text(index)})).collect();
    let answer = app.json("/embeddings/batch", &json!({"inputs": inputs})).await.ok();
    assert_eq!(answer["failed"], 1);
    let error = &answer["results"][20]["error"];
    assert_eq!(
        (&error["code"], &error["errors"][0]["field"]),
        (&json!("text_too_long"), &json!("inputs[20].text"))
    );
    for index in [0, 19, 21, 63] {
        let alone = app.json("/embeddings", &json!({"text": text(index)})).await.ok();
        assert_eq!(answer["results"][index]["embedding"], alone["embedding"], "{index}");
    }
    assert_eq!(app.metrics.prompt_tokens.get_sample_count(), 63 + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_is_reserved_until_it_is_read_even_if_it_only_repeats_texts() {
    let app = TestApp::start();
    let response = app.open(classify_batch()).await;
    assert_eq!(response.status(), 200);
    let held = app.metrics.queue_bytes.get();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.len() > 1_000_000, "{} bytes", body.len());
    let held = usize::try_from(held).unwrap();
    assert!(held >= body.len(), "{held} of {} bytes", body.len());
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((answer["results"].as_array().unwrap().len(), &answer["failed"]), (64, &json!(0)));
    drop(body);
    app.until("the bytes are released", |app| app.metrics.queue_bytes.get() == 0).await;
    // A small answer holds nothing.
    let response = app.open(json_request("/embeddings", &json!({"text": "a"}))).await;
    app.until("the call has ended", |app| app.metrics.queue_rows.get() == 0).await;
    assert_eq!(app.metrics.queue_bytes.get(), 0);
    drop(response);
}

/// The answer is computed before its size is known.
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_that_nobody_reads_fill_the_bytes_and_no_more() {
    let app = TestApp::with(|config| config.engine.capacity_bytes = 24 << 20);
    let mut unread = Vec::new();
    loop {
        let response = app.open(classify_batch()).await;
        if response.status() == 503 {
            break;
        }
        assert_eq!(response.status(), 200);
        unread.push(response);
        assert!(app.metrics.queue_bytes.get() <= 24 << 20);
        assert!(unread.len() < 32, "a megabyte each");
    }
    assert!(unread.len() > 1);
    drop(unread);
    assert_eq!(app.send(classify_batch()).await.status, 200);
}
