//! `/caption` with `stream`.

use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use blip_server::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::answer::assert_problem;
use crate::support::app::json_request;
use crate::support::{TestApp, base64, png};

/// An event's name and data.
type Event = (String, Value);

fn events(text: &str) -> Vec<Event> {
    let blocks = text.split("\n\n").filter(|block| block.contains("event: "));
    let field = |block: &str, name: &str| {
        let line = block
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{block}"));
        line.to_owned()
    };
    blocks
        .map(|block| {
            (field(block, "event: "), serde_json::from_str(&field(block, "data: ")).unwrap())
        })
        .collect()
}

async fn stream(app: &TestApp, mut request: Value) -> Vec<Event> {
    request["stream"] = json!(true);
    let answer = app.json("/caption", &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "text/event-stream");
    events(answer.text())
}

fn joined(events: &[Event]) -> String {
    let deltas = events.iter().filter(|(name, _)| name == "delta");
    deltas.map(|(_, data)| data["text"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deltas_joined_are_the_text_and_done_holds_the_whole_answer() {
    for clean_up in [false, true] {
        let app = TestApp::with(|config| config.clean_up = clean_up);
        for mut request in [
            json!({"image": base64(&png(1))}),
            json!({"image": base64(&png(2)), "prompt": "A cat, isn't it?"}),
            json!({"image": base64(&png(3)), "do_sample": true, "seed": 5, "max_new_tokens": 3}),
        ] {
            let events = stream(&app, request.clone()).await;
            let (name, done) = events.last().unwrap();
            assert_eq!(name, "done");
            assert_eq!(joined(&events), done["captions"][0]["text"].as_str().unwrap());
            let tokens: usize =
                events.iter().map(|(_, data)| data["tokens"].as_array().map_or(0, Vec::len)).sum();
            assert_eq!(done["captions"][0]["token_count"], tokens);
            assert!(events[..events.len() - 1].iter().all(|(name, _)| name == "delta"));
            let timing: Vec<_> = done["timing"].as_object().unwrap().keys().collect();
            assert_eq!(timing, ["decode_ms", "queue_ms", "text_ms", "total_ms", "vision_ms"]);
            let mut done = done.clone();
            done.as_object_mut().unwrap().remove("timing");
            request["stream"] = json!(false);
            assert_eq!(app.json("/caption", &request).await.ok(), done);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_comes_with_the_first_delta() {
    let app = TestApp::start();
    let events = stream(&app, json!({"image": base64(&png(1)), "prompt": "a cat"})).await;
    assert!(events[0].1["text"].as_str().unwrap().starts_with("a cat"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_sequence_without_beams_is_streamed() {
    let app = TestApp::start();
    for more in [json!({"num_beams": 2}), json!({"do_sample": true, "num_return_sequences": 2})] {
        let mut request = json!({"image": base64(&png(1)), "stream": true});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(
            app.json("/caption", &request).await.refused_field(400, "invalid_request"),
            "stream"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_before_the_first_event_is_plain_http() {
    let app = TestApp::start();
    let request = |file: &[u8]| json!({"image": base64(file), "stream": true});
    let mut broken = png(1);
    broken.truncate(40);
    app.json("/caption", &request(&broken)).await.refused(422, "undecodable_image");
    app.control.fault(FakeCall::Step, FakeMark::Image(9), FakeFault::Panic);
    app.json("/caption", &request(&png(9))).await.refused(500, "inference_failed");
}

/// Reads frames until the body has shown this text.
async fn read_until(response: &mut Response<Body>, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let frame = response.body_mut().frame().await.expect("more to come").unwrap();
        seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

/// A stream that has given its first token and whose second stands at the gate.
async fn held_stream(app: &TestApp) -> Response<Body> {
    app.control.set_text_length(10);
    app.control.hold();
    // The vision batch and the first step.
    app.control.pass(2);
    let request = json_request("/caption", &json!({"image": base64(&png(1)), "stream": true}));
    let mut response = app.open(request).await;
    assert_eq!(response.status(), 200);
    read_until(&mut response, "event: delta").await;
    app.control.wait_until_held();
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_fails_later_is_the_last_event() {
    let app = TestApp::start();
    let mut response = held_stream(&app).await;
    app.control.fault(FakeCall::Step, FakeMark::Image(1), FakeFault::Error);
    app.control.release();
    let rest = response.body_mut().collect().await.unwrap().to_bytes();
    let events = events(std::str::from_utf8(&rest).unwrap());
    let (name, problem) = events.last().unwrap();
    assert_eq!(name, "error");
    assert_problem(problem, 500, "inference_failed");
    drop(response);
    let labels = ["/caption", "POST", "200", "inference_failed"];
    app.until("the failure is counted", |app| {
        app.metrics.http_requests_total.with_label_values(&labels).get() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_leaves_stops_the_work() {
    let app = TestApp::start();
    let response = held_stream(&app).await;
    drop(response);
    app.until("the room is given back", |app| {
        // The gate stays shut but for single steps: the text would need eight more.
        app.control.pass(1);
        app.control.open_groups() == 0 && app.handle.rows() == 0
    })
    .await;
    assert_eq!(app.metrics.request_failures_total.with_label_values(&["client_closed"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_end_of_the_drain_time_in_the_middle_is_an_error_event_even_if_the_backend_hangs() {
    let app = TestApp::start();
    let response = held_stream(&app).await;
    app.handle.abort();
    let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
    let body = body.expect("the stream ends although the backend does not").unwrap().to_bytes();
    let events = events(std::str::from_utf8(&body).unwrap());
    assert_problem(&events.last().unwrap().1, 503, "shutting_down");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deadline_in_the_middle_is_an_error_event() {
    let app = TestApp::start();
    app.control.set_text_length(10);
    app.control.hold();
    app.control.pass(2);
    let mut request = json_request("/caption", &json!({"image": base64(&png(1)), "stream": true}));
    request.headers_mut().insert("x-request-timeout-ms", "300".parse().unwrap());
    let response = app.open(request).await;
    assert_eq!(response.status(), 200);
    let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
    let body = body.expect("the stream ends at its deadline").unwrap().to_bytes();
    let events = events(std::str::from_utf8(&body).unwrap());
    assert_problem(&events.last().unwrap().1, 504, "deadline_exceeded");
}
