//! Rate limits: by key, by address, behind proxies. Buckets are small and fill up again while a test runs, so tests ask
//! until they are refused; exact figures stand beside the buckets (`http::access::bucket`).

use axum::body::Body;
use axum::http::Request;
use blip_server::http::RateLimitSettings;
use serde_json::json;

use super::{A, B, get, with_keys};
use crate::support::app::TestConfig;
use crate::support::server::read_until;
use crate::support::{TestApp, TestServer, base64, png};

/// Far more requests than a bucket holds.
const MANY: usize = 100;

fn limit(config: &mut TestConfig) {
    config.http.rate_limit = Some(RateLimitSettings { requests_per_second: 1, burst: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_asks_too_often_is_refused_with_a_time_and_others_go_on() {
    let app = TestApp::with(|config| {
        with_keys(config);
        limit(config);
    });
    let mut answers = Vec::new();
    for _ in 0..MANY {
        answers.push(get(&app, "/info", A).await);
    }
    assert!(answers[..2].iter().all(|answer| answer.status == 200));
    let refused = answers.iter().find(|answer| answer.status != 200).expect("refused");
    refused.refused(429, "rate_limited");
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=2).contains(&seconds), "{seconds}");
    // What is left is told before it is used up.
    for (answer, left) in [(&answers[0], 1), (&answers[1], 0), (refused, 0)] {
        assert_eq!(answer.header("ratelimit-policy"), "\"requests\";q=2;w=2");
        let limit = answer.header("ratelimit");
        assert!(limit.starts_with(&format!("\"requests\";r={left};t=")), "{limit}");
    }
    assert_eq!(get(&app, "/info", B).await.status, 200);
    // Whoever watches the server is not counted.
    for _ in 0..MANY {
        assert_eq!(app.get("/health/ready").await.status, 200);
        assert_eq!(get(&app, "/metrics", A).await.status, 200);
    }
    let labels = ["/info", "GET", "429", "rate_limited"];
    assert!(app.metrics.http_requests_total.with_label_values(&labels).get() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn public_pages_are_counted_only_where_addresses_are() {
    let keyed = TestApp::with(|config| {
        with_keys(config);
        limit(config);
    });
    for _ in 0..MANY {
        for path in ["/", "/docs/", "/openapi.json"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let answer = keyed.open(request).await;
            assert_eq!(answer.status(), 200, "{path}");
            assert!(answer.headers().get("ratelimit").is_none(), "{path}");
        }
    }
    let open = TestApp::with(limit);
    let mut statuses = Vec::new();
    for _ in 0..MANY {
        statuses.push(open.get("/openapi.json").await.status.as_u16());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_call_is_one_request() {
    let app = TestApp::with(limit);
    let inputs: Vec<_> = (1..6).map(|mark| json!({"image": base64(&png(mark))})).collect();
    for _ in 0..2 {
        app.json("/caption/batch", &json!({"inputs": inputs})).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_nothing_is_counted() {
    let app = TestApp::start();
    for _ in 0..MANY {
        assert_eq!(app.get("/info").await.status, 200);
    }
}

/// The status of a request from a client that a proxy names.
async fn status(server: &TestServer, forwarded: &str) -> String {
    let request = format!("GET /info HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {forwarded}\r\n\r\n");
    let mut stream = server.send(request.as_bytes()).await;
    read_until(&mut stream, "\r\n").await["HTTP/1.1 ".len()..][..3].to_owned()
}

/// True when one of many such requests is refused.
async fn is_refused(server: &TestServer, forwarded: impl Fn(usize) -> String) -> bool {
    for index in 0..MANY {
        if status(server, &forwarded(index)).await == "429" {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_trusted_proxy_are_told_apart() {
    let server = TestServer::start(|config| {
        limit(config);
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    assert!(is_refused(&server, |_| "198.51.100.1".to_owned()).await);
    assert_eq!(status(&server, "198.51.100.2").await, "200");
    // What the client itself wrote stands further left.
    assert!(is_refused(&server, |index| format!("6.6.6.{index}, 198.51.100.3")).await);
    // One client has a whole /64 of IPv6.
    assert!(is_refused(&server, |index| format!("2001:db8::{index}")).await);
    assert!(!is_refused(&server, |index| format!("198.18.0.{index}")).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_no_trusted_proxy_cannot_choose_its_address() {
    let server = TestServer::start(limit).await;
    assert!(is_refused(&server, |index| format!("198.18.0.{index}")).await);
    server.stop().await;
}
