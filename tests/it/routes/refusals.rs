//! Refusals that belong to no endpoint in particular: one test for each code that can be had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use blip_server::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use blip_server::task::ModelInfo;
use futures_util::stream;
use image::ImageFormat;
use serde_json::json;

use crate::support::app::json_request;
use crate::support::inputs::picture;
use crate::support::{TestApp, base64, png};

/// Lets a model read ten tokens at most.
fn limit_texts(model: &mut ModelInfo) {
    model.text.as_mut().unwrap().max_tokens = 10;
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_too() {
    let app = TestApp::start();
    app.get("/nothing").await.refused(404, "route_not_found");
    app.get("/caption/").await.refused(404, "route_not_found");
    let wrong = app.get("/caption").await;
    wrong.refused(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), "POST");
    let wrong = app.raw("/health", "", Vec::new()).await;
    wrong.refused(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), "GET,HEAD");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_looked_up_among_the_loaded_names() {
    let app = TestApp::start();
    for name in ["nothing", "fake-vqa", "../../etc/passwd"] {
        let answer = app.json("/caption", &json!({"image": base64(&png(1)), "model": name})).await;
        assert_eq!(answer.refused_field(404, "model_not_found"), "model");
        let problem = answer.refused(404, "model_not_found");
        assert!(problem["detail"].as_str().unwrap().contains("fake-caption"), "{problem}");
    }
    let app = TestApp::with(|config| config.models.retain(|model| model.name == "fake-caption"));
    app.json("/vqa", &json!({})).await.refused(404, "task_not_loaded");
    app.json("/similarity/batch", &json!({})).await.refused(404, "task_not_loaded");
    // Models of every role answer here.
    let request = json!({"image": base64(&png(1)), "model": "nothing", "pooling": "cls"});
    let problem = app.json("/embeddings", &request).await.refused(404, "model_not_found");
    assert!(problem["detail"].as_str().unwrap().contains("fake-caption"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_an_image_has_its_code() {
    let app = TestApp::start();
    let mut broken = png(1);
    broken.truncate(40);
    let unknown = format!("sha256:{}", "0".repeat(64));
    let cases = [
        (json!(base64(&broken)), 422, "undecodable_image"),
        (json!(base64(b"%PDF-1.7 and more")), 415, "unsupported_image_format"),
        (json!(unknown), 404, "image_not_found"),
        (json!("http://169.254.169.254/latest"), 422, "fetch_disabled"),
        (json!("sha256:12"), 400, "invalid_request"),
        (json!("data:image/png,abc"), 400, "invalid_request"),
        (json!("/etc/passwd"), 400, "invalid_request"),
    ];
    for (image, status, code) in cases {
        let answer = app.json("/caption", &json!({"image": image})).await;
        assert_eq!(answer.refused_field(status, code), "image", "{image}");
    }
    let fetch = app.json("/caption", &json!({"image": "http://example.org/a.png"})).await;
    assert!(fetch.text().contains("send the image's bytes"), "{}", fetch.text());
    assert!(fetch.text().contains("fetch.enabled"), "{}", fetch.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_far_above_their_limit_are_refused_in_the_limits_name() {
    let app = TestApp::start();
    let many = |item: &str| vec![item; 300_000].join(",");
    let cases = [
        (
            "/caption/batch",
            format!("{{\"inputs\": [{}]}}", many("{}")),
            "inputs",
            "max_batch_inputs",
        ),
        (
            "/vqa/batch",
            format!("{{\"inputs\": [{{\"image\": \"\", \"questions\": [{}]}}]}}", many("\"a\"")),
            "inputs[0].questions",
            "max_questions",
        ),
        (
            "/vqa",
            format!(
                "{{\"image\": \"\", \"question\": \"a\", \"candidates\": [{}]}}",
                many("\"a\"")
            ),
            "candidates",
            "max_candidates",
        ),
        (
            "/similarity",
            format!("{{\"image\": \"\", \"texts\": [{}]}}", many("\"a\"")),
            "texts",
            "max_texts",
        ),
        (
            "/similarity",
            format!("{{\"images\": [{}], \"text\": \"a\"}}", many("\"\"")),
            "images",
            "max_images",
        ),
    ];
    for (path, body, field, limit) in cases {
        let answer = app.json_text(path, &body).await;
        assert_eq!(answer.refused_field(422, "batch_too_large"), field, "{path}");
        let words = answer.text();
        assert!(words.contains("more than 1024 given") && words.contains(limit), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_new_tokens_than_a_model_has_positions_are_refused_and_the_default_fits_in() {
    let app = TestApp::with(|config| {
        config.models.iter_mut().for_each(limit_texts);
    });
    app.control.set_text_length(15);
    for (path, mut request) in [
        ("/caption", json!({"image": base64(&png(1))})),
        ("/vqa", json!({"image": base64(&png(1)), "question": "a"})),
    ] {
        let answer = app.json(path, &request).await.ok();
        let list = if path == "/vqa" { &answer["answers"] } else { &answer["captions"] };
        assert_eq!(
            (&list[0]["token_count"], &list[0]["finish_reason"]),
            (&json!(10), &json!("length"))
        );
        request["max_new_tokens"] = json!(11);
        let refused = app.json(path, &request).await;
        assert_eq!(refused.refused_field(422, "text_too_long"), "max_new_tokens");
        assert!(refused.text().contains("at most 10 tokens"), "{}", refused.text());
    }
}

/// transformers 5.23 generates here, and fails with an `IndexError` for one new token more.
#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_and_its_new_tokens_may_need_every_position_of_the_model() {
    let app = TestApp::with(|config| {
        config.models.iter_mut().for_each(limit_texts);
    });
    // The start token and four words; the last new token is never read.
    let request =
        |new: u32| json!({"image": base64(&png(1)), "prompt": "a a a a", "max_new_tokens": new});
    app.json("/caption", &request(6)).await.ok();
    let refused = app.json("/caption", &request(7)).await;
    assert_eq!(refused.refused_field(422, "text_too_long"), "prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_pixels_are_refused_before_they_exist() {
    let app = TestApp::with(|config| config.http.input.max_pixels = 100);
    let file = picture(1, 20, 10, image::ImageFormat::Png);
    let answer = app.raw("/caption", "image/png", file).await;
    assert_eq!(answer.refused_field(422, "image_too_large"), "image");
}

#[tokio::test]
async fn a_wrong_timeout_header_is_named() {
    let app = TestApp::start();
    for wrong in ["0", "00", "-5", "soon", "1.5"] {
        let request = Request::post("/caption").header("x-request-timeout-ms", wrong);
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), "x-request-timeout-ms");
    }
}

#[tokio::test]
async fn a_declared_body_above_the_limit_is_refused_unread() {
    let app = TestApp::with(|config| config.http.limits.max_body_bytes = 1000);
    let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/caption").header("content-length", "1001").body(never).unwrap();
    let answer = app.send(request).await;
    answer.refused(413, "payload_too_large");
    assert_eq!(answer.header("connection"), "close");
}

#[tokio::test]
async fn an_undeclared_body_is_bounded_as_it_arrives() {
    let app = TestApp::with(|config| {
        config.http.limits.max_body_bytes = 1000;
        config.http.limits.max_body_frames = 20;
    });
    let body = |piece: &'static [u8], count: usize| {
        let pieces = (0..count).map(move |_| Ok::<_, std::io::Error>(Bytes::from_static(piece)));
        Request::post("/caption").body(Body::from_stream(stream::iter(pieces))).unwrap()
    };
    app.send(body(&[0; 101], 10)).await.refused(413, "payload_too_large");
    // Few bytes, too many pieces.
    app.send(body(b"x", 21)).await.refused(413, "payload_too_large");
}

#[tokio::test]
async fn what_precedes_a_part_is_read_up_to_a_limit() {
    let app = TestApp::start();
    for beginning in ["", "--b", "--b\r\nx: "] {
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        let pieces = (0..5000).map(move |index| {
            counter.fetch_add(1, Ordering::Relaxed);
            let piece = if index == 0 { beginning.to_owned() } else { " ".repeat(4096) };
            Ok::<_, std::io::Error>(Bytes::from(piece))
        });
        let request =
            Request::post("/caption").header("content-type", "multipart/form-data; boundary=b");
        let request = request.body(Body::from_stream(stream::iter(pieces))).unwrap();
        let answer = app.send(request).await;
        answer.refused(400, "invalid_request");
        assert!(answer.text().contains("exceeds 65536 bytes"), "{}", answer.text());
        assert!(taken.load(Ordering::Relaxed) < 20, "{taken:?} pieces");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_fault() {
    let app = TestApp::start();
    for content_type in ["application/json", "image/png", "multipart/form-data; boundary=b"] {
        let pieces = [Ok(Bytes::from_static(b"--b\r\n")), Err(std::io::Error::other("reset"))];
        let request = Request::post("/caption").header("content-type", content_type);
        let request = request.body(Body::from_stream(stream::iter(pieces))).unwrap();
        app.send(request).await.refused(400, "invalid_request");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408_and_a_short_deadline_a_504() {
    let app = TestApp::with(|config| {
        config.http.connections.body_idle_timeout = Duration::from_millis(50);
    });
    let stalled = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let answer = app.send(Request::post("/caption").body(stalled()).unwrap()).await;
    answer.refused(408, "request_timeout");
    assert_eq!(answer.header("connection"), "close");
    let hasty = Request::post("/caption").header("x-request-timeout-ms", "10").body(stalled());
    app.send(hasty.unwrap()).await.refused(504, "deadline_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_fails_or_panics_is_a_500_and_the_next_request_is_answered() {
    let app = TestApp::start();
    app.control.fault(FakeCall::Encode, FakeMark::Image(9), FakeFault::Panic);
    app.control.fault(FakeCall::Step, FakeMark::Image(8), FakeFault::Error);
    for mark in [9, 8] {
        let answer = app.json("/caption", &json!({"image": base64(&png(mark))})).await;
        answer.refused(500, "inference_failed");
        assert!(!answer.text().contains("scripted"), "no internals: {}", answer.text());
    }
    app.json("/caption", &json!({"image": base64(&png(1))})).await.ok();
}

#[tokio::test]
async fn a_long_wait_for_decoding_is_a_503_and_what_is_refused_is_never_decoded() {
    let app = TestApp::with(|config| {
        config.images.decode_threads = 1;
        config.engine.max_queue_wait = Duration::from_millis(1);
    });
    let body = |mark| json!({"image": base64(&picture(mark, 2000, 2000, ImageFormat::Png))});
    // Tells what a picture takes: far more than a millisecond.
    app.json("/caption", &body(0)).await.ok();
    let bodies: Vec<_> = (1..9).map(body).collect();
    let requests = bodies.iter().map(|body| app.json("/caption", body));
    let answers = futures_util::future::join_all(requests).await;
    let refused = answers.iter().filter(|answer| answer.status == 503).count() as u64;
    for answer in &answers {
        if answer.status == 503 {
            answer.refused(503, "overloaded");
            assert!(answer.headers.contains_key("retry-after"));
        } else {
            answer.ok();
        }
    }
    assert!((1..8).contains(&refused), "{refused} refused");
    assert_eq!(app.metrics.image_pixels.get_sample_count(), 9 - refused);
    assert_eq!(app.metrics.queue_rejected_total.with_label_values(&["full"]).get(), refused);
    app.json("/caption", &body(0)).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_queue_is_a_503_before_anything_is_decoded() {
    let app = TestApp::with(|config| config.engine.capacity_rows = 4);
    app.control.hold();
    let holder = json_request("/caption", &json!({"image": base64(&png(1)), "num_beams": 4}));
    let router = app.router.clone();
    let holding = tokio::spawn(async move { tower::ServiceExt::oneshot(router, holder).await });
    app.control.wait_until_held();
    let decoded = app.metrics.image_pixels.get_sample_count();
    app.json("/caption", &json!({"image": base64(&png(2))})).await.refused(503, "overloaded");
    assert_eq!(app.metrics.image_pixels.get_sample_count(), decoded);
    app.control.release();
    assert_eq!(holding.await.unwrap().unwrap().status(), 200);
    app.json("/caption", &json!({"image": base64(&png(2))})).await.ok();
    // More than the whole queue is no matter of waiting.
    let wide = json!({"image": base64(&png(1)), "num_beams": 5});
    app.json("/caption", &wide).await.refused(422, "batch_too_large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn decoded_images_and_pixels_take_room_beside_their_body() {
    // The scripted models take 2 x 2 pixels of 3 bytes.
    const PIXELS: u64 = 12;
    let value = base64(&png(1));
    let body = json!({"image": value});
    let (body_bytes, decoded) = (body.to_string().len() as u64, value.len() as u64 / 4 * 3);
    let needed = body_bytes + decoded + PIXELS;
    let request = || {
        let mut request = json_request("/caption", &body);
        request.headers_mut().insert("content-length", body_bytes.into());
        request
    };
    let app = TestApp::with(|config| config.engine.capacity_bytes = 2 * needed - 1);
    app.control.hold();
    let (router, first) = (app.router.clone(), request());
    let holding = tokio::spawn(async move { tower::ServiceExt::oneshot(router, first).await });
    app.control.wait_until_held();
    assert_eq!(app.metrics.queue_bytes.get(), i64::try_from(needed).unwrap());
    // The second body fits, its pixels do not.
    app.send(request()).await.refused(503, "overloaded");
    app.control.release();
    assert_eq!(holding.await.unwrap().unwrap().status(), 200);
    app.until("the room is given back", |app| app.metrics.queue_bytes.get() == 0).await;
    app.send(request()).await.ok();
    // What an idle server has no room for is no matter of waiting.
    let app = TestApp::with(|config| config.engine.capacity_bytes = needed - 1);
    let refused = app.send(request()).await;
    refused.refused(422, "batch_too_large");
    assert!(refused.text().contains("engine.capacity_bytes"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_misses_its_deadline_is_a_504() {
    let app = TestApp::start();
    app.control.hold();
    let mut request = json_request("/caption", &json!({"image": base64(&png(1))}));
    request.headers_mut().insert("x-request-timeout-ms", "100".parse().unwrap());
    app.send(request).await.refused(504, "deadline_exceeded");
}

#[tokio::test]
async fn a_draining_server_takes_nothing_new() {
    let app = TestApp::start();
    app.handle.drain();
    app.json("/caption", &json!({"image": base64(&png(1))})).await.refused(503, "shutting_down");
}
