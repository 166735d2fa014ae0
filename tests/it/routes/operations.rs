//! Health, info, metrics, documents.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use blip_server::engine::Phase;
use blip_server::http::{CorsSettings, HttpSettings, HttpState, router};
use blip_server::telemetry::metrics::Metrics;
use serde_json::json;
use tower::ServiceExt;

use crate::support::log::Log;
use crate::support::{Answer, TestApp, base64, png};

/// How often a probe of this path was answered so.
fn probes(metrics: &Metrics, path: &str, status: &str, code: &str) -> u64 {
    metrics.http_requests_total.with_label_values(&[path, "GET", status, code]).get()
}

async fn health(app: &TestApp, path: &str) -> (u16, String) {
    let answer = app.get(path).await;
    (answer.status.as_u16(), answer.text().to_owned())
}

fn status(name: &str) -> String {
    format!("{{\"status\":\"{name}\"}}")
}

#[tokio::test]
async fn health_follows_the_life_of_the_process() {
    let app = TestApp::start();
    for path in ["/health", "/health/ready", "/health/live"] {
        assert_eq!(health(&app, path).await, (200, status("ready")), "{path}");
    }
    assert_eq!(app.metrics.ready.get(), 1);
    app.state.set_draining();
    assert_eq!(health(&app, "/health").await, (503, status("draining")));
    assert_eq!(health(&app, "/health/ready").await, (503, status("draining")));
    assert_eq!(health(&app, "/health/live").await, (200, status("draining")));
    assert_eq!((app.metrics.ready.get(), app.metrics.draining.get()), (0, 1));
    for path in ["/health", "/health/ready"] {
        assert_eq!(probes(&app.metrics, path, "200", "ok"), 1, "{path}");
        assert_eq!(probes(&app.metrics, path, "503", "shutting_down"), 1, "{path}");
        assert_eq!(probes(&app.metrics, path, "503", "ok"), 0, "{path}");
    }
    assert_eq!(probes(&app.metrics, "/health/live", "200", "ok"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_makes_the_process_neither_ready_nor_alive() {
    let app = TestApp::with(|config| {
        config.engine.worker_hang_limit = std::time::Duration::from_millis(1);
    });
    app.control.hold();
    let body = json!({"image": base64(&png(1))}).to_string();
    let request = Request::post("/caption").header("content-type", "application/json");
    let request = request.header("host", "x").body(Body::from(body)).unwrap();
    let router = app.router.clone();
    let caption = tokio::spawn(async move { router.oneshot(request).await });
    app.control.wait_until_held();
    app.until("a hang", |app| app.handle.phase() == Phase::Down).await;
    for path in ["/health", "/health/ready", "/health/live"] {
        assert_eq!(health(&app, path).await, (503, status("worker_down")), "{path}");
    }
    app.control.release();
    assert_eq!(caption.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_server_that_loads_says_so_and_refuses_work() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let router = router(HttpState::new(HttpSettings::default(), Arc::clone(&metrics)));
    let get = |path: &str| {
        let request = Request::get(path).header("host", "x").body(Body::empty());
        router.clone().oneshot(request.unwrap())
    };
    let ready = Answer::read(get("/health/ready").await.unwrap()).await;
    assert_eq!((ready.status.as_u16(), ready.text()), (503, status("loading").as_str()));
    assert_eq!(Answer::read(get("/health/live").await.unwrap()).await.status, 200);
    Answer::read(get("/info").await.unwrap()).await.refused(503, "not_ready");
    let post = Request::post("/caption").header("host", "x").body(Body::empty()).unwrap();
    Answer::read(router.clone().oneshot(post).await.unwrap()).await.refused(503, "not_ready");
    assert_eq!(probes(&metrics, "/health/ready", "503", "not_ready"), 1);
    assert_eq!(probes(&metrics, "/health/ready", "503", "ok"), 0);
}

#[tokio::test]
async fn a_probe_answered_not_ready_is_no_error_in_the_log_and_a_refused_request_is() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let router = router(HttpState::new(HttpSettings::default(), metrics));
    let ask = async || {
        for request in [Request::get("/health/ready"), Request::post("/caption")] {
            let request = request.header("host", "x").body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await;
            assert_eq!(Answer::read(response.unwrap()).await.status, 503);
        }
    };
    // Once before: see `Log`.
    ask().await;
    let log = Log::listen(tracing::Level::DEBUG);
    ask().await;
    let text = log.text();
    let lines: Vec<&str> =
        text.lines().map(str::trim_start).filter(|line| line.contains(" access: ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("DEBUG") && lines[0].contains("reason=\"not_ready\""), "{text}");
    assert!(lines[1].starts_with("ERROR") && lines[1].contains("route=\"/caption\""), "{text}");
}

#[tokio::test]
async fn info_tells_models_limits_and_batching() {
    let app = TestApp::start();
    let info = app.get("/info").await.ok();
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let models = info["models"].as_array().unwrap();
    let told: Vec<_> = models.iter().map(|m| (&m["name"], &m["role"], &m["default"])).collect();
    let (yes, no) = (json!(true), json!(false));
    assert_eq!(
        told,
        [
            (&json!("fake-caption"), &json!("caption"), &yes),
            (&json!("fake-vqa"), &json!("vqa"), &yes),
            (&json!("fake-retrieval"), &json!("retrieval"), &yes),
            (&json!("fake-clip"), &json!("retrieval"), &no),
        ]
    );
    assert_eq!(models[0]["class"], "BlipForConditionalGeneration");
    assert_eq!(
        (&models[0]["dtype"], &models[0]["device"], &models[0]["demo"]),
        (&json!("f32"), &json!("cpu"), &no)
    );
    assert_eq!(info["limits"]["max_image_bytes"], 10 << 20);
    assert_eq!(info["limits"]["max_decoded_bytes"], 384 << 20);
    assert_eq!(info["limits"]["max_rows"], 256);
    assert_eq!(info["limits"]["deadline_ms"], 30_000);
    assert_eq!(info["limits"]["max_embedding_values"], 2_000_000);
    assert_eq!(info["bulk"]["max_line_bytes"], 14 << 20);
    assert_eq!(info["bulk"]["max_held_bytes"], 64 << 20);
    assert_eq!(info["bulk"]["deadline_ms"], 600_000);
    assert_eq!(info["batching"]["capacity_rows"], 512);
    assert_eq!(info["cpu_isa"], "test");
    assert_eq!(info["resize_order"], "pillow13");
    assert_eq!(info["models"][0]["resample"], "bicubic");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_items_and_refusals_under_closed_labels() {
    let app = TestApp::start();
    let before = app.get("/metrics").await;
    assert_eq!(before.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let zero =
        "blip_http_requests_total{code=\"ok\",method=\"POST\",route=\"/caption\",status=\"200\"} 0";
    assert!(before.text().contains(zero));
    assert!(before.text().contains("blip_request_failures_total{reason=\"overloaded\"} 0"));

    app.json("/caption", &json!({"image": base64(&png(1))})).await.ok();
    app.json("/caption", &json!({})).await.refused(400, "invalid_request");
    for index in 0..5 {
        app.get(&format!("/nowhere/{index}")).await.refused(404, "route_not_found");
    }
    let brew = Request::builder().method("BREW").uri("/caption").body(Body::empty()).unwrap();
    app.send(brew).await.refused(405, "method_not_allowed");

    let text = app.get("/metrics").await.text().to_owned();
    for line in [
        "blip_http_requests_total{code=\"ok\",method=\"POST\",route=\"/caption\",status=\"200\"} 1",
        "blip_http_requests_total{code=\"invalid_request\",method=\"POST\",route=\"/caption\",status=\"400\"} 1",
        "blip_http_requests_total{code=\"route_not_found\",method=\"GET\",route=\"unmatched\",status=\"404\"} 5",
        "blip_http_requests_total{code=\"method_not_allowed\",method=\"other\",route=\"/caption\",status=\"405\"} 1",
        "blip_request_failures_total{reason=\"invalid_request\"} 1",
        "blip_items_total{code=\"ok\",model=\"fake-caption\",task=\"caption\"} 1",
        "blip_items_total{code=\"ok\",model=\"fake-clip\",task=\"similarity\"} 0",
        "blip_http_request_duration_seconds_count{route=\"/caption\"} 3",
        "blip_http_requests_in_flight 1",
        "blip_stage_duration_seconds_count{stage=\"post\"} 1",
        "blip_ready 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(!text.contains("nowhere"));
}

#[tokio::test]
async fn the_documentation_is_served_from_the_binary_and_can_be_switched_off() {
    let app = TestApp::start();
    let page = app.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("swagger"), "{}", page.text());
    assert!(
        !page.text().contains("http://") && !page.text().contains("https://"),
        "assets from elsewhere"
    );
    assert_eq!(app.get("/docs/swagger-ui-bundle.js").await.status, 200);
    app.get("/docs/nothing.js").await.refused(404, "route_not_found");
    // Relative addresses work below the path of a proxy too.
    let script = app.get("/docs/swagger-initializer.js").await;
    assert!(script.text().contains("\"../openapi.json\""), "{}", script.text());
    assert_eq!(app.get("/docs").await.header("location"), "docs/");

    let app = TestApp::with(|config| config.http.docs = false);
    for path in ["/docs", "/docs/", "/openapi.json", "/openapi.yaml"] {
        app.get(path).await.refused(404, "route_not_found");
    }
}

#[tokio::test]
async fn request_ids_of_clients_are_taken_over_where_harmless() {
    let app = TestApp::start();
    let with = |id: &str| {
        let request = Request::get("/health").header("x-request-id", id).body(Body::empty());
        app.send(request.unwrap())
    };
    assert_eq!(with("abc_1.2:3-4").await.header("x-request-id"), "abc_1.2:3-4");
    for hostile in ["a b", "<x>", "", &"x".repeat(129)] {
        let given = with(hostile).await.header("x-request-id").to_owned();
        assert!(given != hostile && !given.is_empty(), "{hostile}");
    }
}

async fn ask(app: &TestApp, origin: &str) -> Answer {
    app.send(Request::get("/health").header("origin", origin).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn other_origins_are_answered_only_when_the_setting_names_them() {
    let app = TestApp::start();
    assert_eq!(ask(&app, "https://a.example").await.header("access-control-allow-origin"), "");
    let cors = CorsSettings { allowed_origins: vec!["https://a.example".to_owned()] };
    let app = TestApp::with(|config| config.http.cors = Some(cors));
    let allowed = ask(&app, "https://a.example").await;
    assert_eq!(allowed.header("access-control-allow-origin"), "https://a.example");
    let exposed = allowed.header("access-control-expose-headers");
    for header in ["x-request-id", "server-timing", "retry-after"] {
        assert!(exposed.contains(header), "{exposed}");
    }
    assert_eq!(ask(&app, "https://b.example").await.header("access-control-allow-origin"), "");
}
