//! Browsers: nothing by default; with the setting, they ask beforehand without a key, and can read refusals.

use axum::body::Body;
use axum::http::Request;
use blip_server::http::CorsSettings;

use super::{A, with_keys};
use crate::support::{Answer, TestApp};

const ORIGIN: &str = "https://a.example";

/// What a browser asks before it sends a POST with a key.
async fn preflight(app: &TestApp) -> Answer {
    let request = Request::builder()
        .method("OPTIONS")
        .uri("/caption")
        .header("origin", ORIGIN)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    app.send(request.body(Body::empty()).unwrap()).await
}

async fn simple(app: &TestApp, key: Option<&str>) -> Answer {
    let mut request = Request::get("/info").header("origin", ORIGIN);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    app.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn by_default_no_answer_allows_another_origin_anything() {
    let app = TestApp::start();
    let preflight = preflight(&app).await;
    preflight.refused(403, "origin_not_allowed");
    for answer in [preflight, simple(&app, None).await] {
        let allows = |name: &str| name.starts_with("access-control-");
        assert!(!answer.headers.keys().any(|name| allows(name.as_str())), "{:?}", answer.headers);
    }
}

#[tokio::test]
async fn preflights_need_no_key_and_refusals_can_be_read() {
    let app = TestApp::with(|config| {
        with_keys(config);
        config.http.cors = Some(CorsSettings { allowed_origins: vec![ORIGIN.to_owned()] });
    });
    let asked = preflight(&app).await;
    assert_eq!(asked.status, 200, "{}", asked.text());
    assert_eq!(asked.header("access-control-allow-origin"), ORIGIN);
    assert!(asked.header("access-control-allow-headers").contains("authorization"));
    assert!(asked.header("access-control-allow-methods").contains("POST"));
    let refused = simple(&app, None).await;
    refused.refused(401, "unauthorized");
    assert_eq!(refused.header("access-control-allow-origin"), ORIGIN);
    assert_eq!(simple(&app, Some(A)).await.status, 200);
}

#[tokio::test]
async fn with_keys_and_without_the_setting_a_preflight_is_a_request_without_a_key() {
    let app = TestApp::with(with_keys);
    let asked = preflight(&app).await;
    asked.refused(401, "unauthorized");
    assert_eq!(asked.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_foreign_origin_cannot_use_a_server_without_keys() {
    let app = TestApp::start();
    let post = async |origin: &str| {
        let request = Request::post("/caption")
            .header("origin", origin)
            .header("host", "127.0.0.1:8080")
            .header("content-type", "application/octet-stream");
        app.send(request.body(Body::from(crate::support::png(1))).unwrap()).await
    };
    let refused = post(ORIGIN).await;
    let problem = refused.refused(403, "origin_not_allowed").to_string();
    for setting in ["server.cors_allowed_origins", "server.allowed_hosts"] {
        assert!(problem.contains(setting), "{problem}");
    }
    post("http://localhost:3000").await.ok();
    // With keys the key decides.
    let app = TestApp::with(with_keys);
    assert_eq!(simple(&app, Some(A)).await.status, 200);
}
