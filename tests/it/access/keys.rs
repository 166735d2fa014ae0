//! API keys: what needs one, what a refusal looks like, what guessing costs, what is logged.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use super::{A, B, get, post, with_keys};
use crate::support::log::Log;
use crate::support::server::read_to_end;
use crate::support::{TestApp, TestServer, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_health_and_documents_wants_a_key() {
    let app = TestApp::with(with_keys);
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    // The documents tell nothing that the repository does not, and the page takes the key that its trials need.
    for path in
        ["/docs/", "/docs/swagger-ui.css", "/openapi.json", "/openapi.yaml", "/openapi-strict.json"]
    {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    for path in ["/info", "/metrics", "/nowhere", "/docsx", "/openapi.json/x"] {
        let refused = app.get(path).await;
        refused.refused(401, "unauthorized");
        assert_eq!(refused.header("www-authenticate"), "Bearer realm=\"blip\"", "{path}");
        assert_ne!(get(&app, path, A).await.status, 401, "{path}");
    }
    // No spelling of a path leads around the keys.
    for path in
        ["/health/", "//health", "/health/../info", "/health%2f..%2finfo", "/HEALTH", "//docs/"]
    {
        app.get(path).await.refused(401, "unauthorized");
    }
    let body = json!({"image": base64(&png(1))});
    app.json("/caption", &body).await.refused(401, "unauthorized");
    for secret in [A, B] {
        post(&app, "/caption", secret, &body).await.ok();
    }
    get(&app, "/nowhere", A).await.refused(404, "route_not_found");
}

#[tokio::test]
async fn what_is_not_a_whole_right_key_in_one_bearer_header_is_refused() {
    let app = TestApp::with(with_keys);
    let cases = [
        vec![format!("Basic {A}")],
        vec![A.to_owned()],
        vec!["Bearer".to_owned()],
        vec!["Bearer ".to_owned()],
        vec![format!("Bearer {}", &A[..A.len() - 1])],
        vec![format!("Bearer {A}x")],
        vec![format!("Bearer {}", A.to_uppercase())],
        vec![format!("Bearer a:{A}")],
        vec![format!("Bearer {A}"), format!("Bearer {B}")],
    ];
    for values in cases {
        let mut request = Request::get("/info");
        for value in &values {
            request = request.header("authorization", value);
        }
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        let problem = answer.refused(401, "unauthorized");
        assert!(!problem.to_string().contains(A), "{problem}");
    }
    // Neither the query string nor other headers are looked at.
    app.get(&format!("/info?api_key={A}&authorization=Bearer%20{A}"))
        .await
        .refused(401, "unauthorized");
    let lower = Request::get("/info").header("authorization", format!("bearer {A}"));
    assert_eq!(app.send(lower.body(Body::empty()).unwrap()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_key_is_refused_before_its_body_and_its_connection_ends() {
    let server = TestServer::start(with_keys).await;
    for expect in ["", "expect: 100-continue\r\n"] {
        let head =
            format!("POST /caption HTTP/1.1\r\nhost: x\r\n{expect}content-length: 1000000\r\n\r\n");
        let stream = server.send(head.as_bytes()).await;
        let answer = tokio::time::timeout(Duration::from_secs(5), read_to_end(stream)).await;
        let answer = answer.expect("answered without a body");
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        assert!(answer.contains("\"code\":\"unauthorized\""), "{answer}");
    }
    assert_eq!(server.app.metrics.queue_bytes.get(), 0);
    server.stop().await;
}

#[tokio::test]
async fn guessing_is_refused_after_twenty_wrong_keys_and_right_ones_from_the_same_address_pass() {
    let app = TestApp::with(|config| {
        with_keys(config);
        // The next attempt comes free in a minute.
        config.http.auth.as_mut().unwrap().failed_attempts_per_minute = 1;
    });
    for _ in 0..20 {
        get(&app, "/info", "wrong-wrong-wrong-wrong").await.refused(401, "unauthorized");
    }
    let refused = get(&app, "/info", "wrong-wrong-wrong-wrong").await;
    refused.refused(429, "rate_limited");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    app.get("/info").await.refused(429, "rate_limited");
    for secret in [A, B] {
        get(&app, "/info", secret).await.ok();
    }
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test]
async fn the_log_names_the_owner_of_a_key_and_never_the_key() {
    let app = TestApp::with(with_keys);
    // Once before: see `Log`.
    get(&app, "/info", A).await.ok();
    app.get("/info").await.refused(401, "unauthorized");
    let log = Log::listen(tracing::Level::TRACE);
    let info = get(&app, "/info", A).await.text().to_owned();
    let guess = "wrong-wrong-wrong-wrong";
    get(&app, "/info", guess).await.refused(401, "unauthorized");
    let metrics = get(&app, "/metrics", B).await.text().to_owned();
    let text = log.text();
    assert!(text.contains("key_id=\"a\"") && text.contains("key_id=\"b\""), "{text}");
    for shown in [&text, &info, &metrics, &format!("{:?}", app.state.settings())] {
        for secret in [A, B, guess] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    assert!(!info.contains("key") && !metrics.contains("key_id"));
}
