//! Whatever clients write, the number of series and the size of `/metrics` stay what they were.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use super::random::Random;
use crate::support::TestApp;

/// Paths, methods, headers, model names and types that no other request had.
async fn send(app: &TestApp, random: &mut Random) {
    let word = random.word(12);
    let path = match random.below(6) {
        0 => "/caption".to_owned(),
        1 => format!("/caption/{word}"),
        2 => format!("/docs/{word}.js"),
        3 => format!("/health?{word}={word}"),
        4 => format!("/{word}/%00/..%2f{word}"),
        _ => format!("/{word}"),
    };
    let methods = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"];
    let method = match random.below(3) {
        0 => word.to_uppercase(),
        _ => (*random.pick(&methods)).to_owned(),
    };
    let types = [
        "application/json".to_owned(),
        format!("image/{word}"),
        format!("{word}/x"),
        String::new(),
    ];
    let request = Request::builder().method(method.as_str()).uri(path);
    let request = request.header(format!("x-{word}"), &word).header("x-request-id", &word);
    let request = request
        .header("content-type", random.pick(&types))
        .header("authorization", format!("Bearer {word}"));
    let body = json!({"image": word, "model": word, word.clone(): word}).to_string();
    app.send(request.body(Body::from(body)).unwrap()).await;
    let named = json!({"image": "", "model": word});
    app.json("/caption", &named).await.refused(404, "model_not_found");
}

/// The series that `/metrics` has, and its size in bytes.
async fn series(app: &TestApp) -> (BTreeSet<String>, usize) {
    let answer = app.get("/metrics").await;
    let names = answer.text().lines().filter(|line| !line.starts_with('#'));
    let names = names.map(|line| line.rsplit_once(' ').map_or(line, |(name, _)| name).to_owned());
    (names.collect(), answer.body.len())
}

/// After a warm-up that meets every kind of refusal, so many requests add no series.
async fn run(requests: u64) -> (usize, usize) {
    let app = TestApp::start();
    for index in 0..1000 {
        send(&app, &mut Random::new(1, index)).await;
    }
    // The route of the metrics has series of its own, from its second answer on.
    series(&app).await;
    let (before, _) = series(&app).await;
    for index in 0..requests / 2 {
        send(&app, &mut Random::new(2, index)).await;
    }
    let (after, bytes) = series(&app).await;
    let added: Vec<_> = after.difference(&before).collect();
    assert!(added.is_empty(), "{added:#?}");
    assert!(bytes < 256 << 10, "{bytes} bytes");
    (after.len(), bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_word_of_a_client_becomes_a_series() {
    run(2000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long"]
async fn long() {
    let (series, bytes) = run(100_000).await;
    eprintln!("100,000 requests: {series} series, {bytes} bytes of /metrics");
}
