//! The spans of each kind of call.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use blip_server::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use http_body_util::BodyExt;
use serde_json::json;

use super::{exported, to, traced, traced_with};
use crate::support::app::json_request;
use crate::support::collector::{Collector, attributes};
use crate::support::origin::{any_loopback, fetching, ok};
use crate::support::{Names, Origin, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn a_caption_has_a_span_for_each_stage() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let request = json!({"image": base64(&png(1)), "prompt": "a secret cat"});
    let answer = app.json("/caption", &request).await;
    answer.ok();
    let spans = exported(&app, &collector);
    let server = spans.one("POST /caption");
    spans.assert_nested_below(server);
    assert!(server.parent_span_id.is_empty(), "a new trace");
    let mut stages = spans.below(server);
    // Only if the decoding thread was busy.
    stages.retain(|name| *name != "decode.wait");
    assert_eq!(stages, ["decode", "queue", "read", "text", "tokenize", "vision"]);
    let ends_before = |first: &str, second: &str| {
        spans.one(first).end_time_unix_nano <= spans.one(second).start_time_unix_nano
    };
    for (first, second) in
        [("read", "tokenize"), ("tokenize", "queue"), ("queue", "vision"), ("vision", "text")]
    {
        assert!(ends_before(first, second), "{first}, {second}");
    }

    let facts = attributes(server);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/caption"),
        ("url.path", "/caption"),
        ("url.scheme", "http"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("server.address", "blip.test"),
        ("blip.task", "caption"),
        ("blip.model", "fake-caption"),
        ("blip.inputs", "1"),
        ("blip.request_id", answer.header("x-request-id")),
    ] {
        assert_eq!(facts.get(name).map(String::as_str), Some(value), "{name} in {facts:?}");
    }
    assert!(!facts.contains_key("error.type") && !facts.contains_key("client.address"));
    let text = attributes(spans.one("text"));
    assert_eq!(text["blip.model"], "fake-caption");
    assert_eq!(text["blip.batch_size"], "1");
    assert!(text["blip.units"].parse::<usize>().unwrap() >= 1);
    let all = format!("{spans:?}");
    assert!(!all.contains("secret") && !all.contains(&base64(&png(1))[..20]));
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "blip-server");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_input_of_a_batch_has_its_own_stages() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let mut broken = png(2);
    broken.truncate(40);
    let inputs = json!([{"image": base64(&png(1))}, {"image": base64(&broken)}]);
    let answer = app.json("/caption/batch", &json!({"inputs": inputs})).await;
    assert_eq!(answer.ok()["failed"], 1);
    let spans = exported(&app, &collector);
    let server = spans.one("POST /caption/batch");
    spans.assert_nested_below(server);
    assert_eq!(attributes(server)["blip.inputs"], "2");
    assert!(server.status.as_ref().is_none_or(|status| status.code == 0), "{:?}", server.status);
    let inputs = spans.named("input");
    let input = |index: &str| {
        *inputs.iter().find(|span| attributes(span)["blip.input.index"] == index).unwrap()
    };
    assert_eq!(spans.below(input("0")), ["queue", "text", "vision"]);
    assert!(spans.below(input("1")).is_empty());
    let failed = attributes(input("1"));
    assert_eq!(failed["error.type"], "undecodable_image", "{failed:?}");
    assert_eq!(input("1").status.as_ref().unwrap().code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_its_span_at_its_end_and_a_client_that_leaves_cancels_it() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    app.control.set_text_length(20);
    let request = json!({"image": base64(&png(1)), "stream": true});
    let answer = app.json("/caption", &request).await;
    assert!(answer.text().contains("event: done"));
    // The worker stops at its next call, so the stream cannot end before its client leaves.
    app.control.hold();
    app.control.pass(2);
    let mut body = app.open(json_request("/caption", &request)).await.into_body();
    assert!(body.frame().await.is_some());
    drop(body);
    app.control.release();
    app.until("the work is cancelled", |app| app.handle.rows() == 0).await;
    let spans = exported(&app, &collector);
    let [complete, left] = spans.named("POST /caption")[..] else { panic!("{:?}", spans.names()) };
    assert_eq!(attributes(complete)["blip.tokens"], "20");
    let mut stages = spans.below(complete);
    stages.retain(|name| *name != "decode.wait");
    assert_eq!(stages, ["decode", "queue", "read", "text", "vision"]);
    let left_facts = attributes(left);
    assert_eq!(left_facts["blip.cancelled"], "true");
    assert_eq!(left_facts["error.type"], "client_closed");
    assert_eq!(left_facts["http.response.status_code"], "200");
    assert!(left.status.as_ref().is_none_or(|status| status.code == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_a_bulk_request_has_its_own_span() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let line = json!({"task": "caption", "image": base64(&png(1))});
    let request = Request::post("/bulk").header("content-type", "application/x-ndjson");
    let body = format!("{line}\nnonsense\n");
    app.send(request.body(Body::from(body)).unwrap()).await;
    let spans = exported(&app, &collector);
    let server = spans.one("POST /bulk");
    let lines = spans.named("line");
    let line =
        |number: &str| *lines.iter().find(|span| attributes(span)["blip.line"] == number).unwrap();
    let mut stages = spans.below(line("1"));
    stages.retain(|name| *name != "decode.wait");
    assert_eq!(stages, ["decode", "queue", "text", "vision"]);
    assert_eq!(attributes(line("2"))["error.type"], "invalid_request");
    assert_eq!(spans.below(server), ["line", "line"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_at_most_so_many_spans() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let line = json!({"task": "embeddings", "text": "a cat"});
    let body = format!("{line}\n").repeat(300);
    let request = Request::post("/bulk").header("content-type", "application/x-ndjson");
    app.send(request.body(Body::from(body)).unwrap()).await;
    let spans = exported(&app, &collector);
    assert_eq!(spans.0.len(), 513);
    let dropped = attributes(spans.one("POST /bulk"))["blip.dropped_spans"].parse::<u64>().unwrap();
    let counted = app.metrics.trace_spans_dropped_total.with_label_values(&["request_limit"]);
    assert!(dropped > 0);
    assert_eq!(counted.get(), dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_server_are_errors_and_refusals_are_not() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let request = json!({"image": base64(&png(1))});
    app.json("/caption", &json!({"picture": 1})).await.refused(400, "invalid_request");
    app.control.fault(FakeCall::Encode, FakeMark::Image(1), FakeFault::Error);
    app.json("/caption", &request).await.refused(500, "inference_failed");
    app.control.clear_faults();
    let spans = exported(&app, &collector);
    let [refused, failed] = spans.named("POST /caption")[..] else { panic!("{:?}", spans.names()) };
    let code = |span: &opentelemetry_proto::tonic::trace::v1::Span| {
        (attributes(span)["error.type"].clone(), span.status.as_ref().map_or(0, |s| s.code))
    };
    assert_eq!(code(refused), ("invalid_request".to_owned(), 0));
    assert_eq!(code(failed), ("inference_failed".to_owned(), 2));
    assert_eq!(attributes(failed)["http.response.status_code"], "500");
    assert_eq!(code(spans.one("inference")), ("inference_failed".to_owned(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_image_has_a_span_that_does_not_name_its_url() {
    let origin = Origin::sending(ok(&png(7))).await;
    let names = Names::all(&[[127, 0, 0, 1].into()]);
    let collector = Collector::start();
    let port = origin.address.port();
    let app = traced_with(&to(&collector), |config| {
        fetching(config, &Arc::clone(&names), port, any_loopback);
    });
    let url = format!("http://cdn.example:{port}/private.png?sign=private");
    app.json("/caption", &json!({"image": url})).await.ok();
    let spans = exported(&app, &collector);
    spans.assert_nested_below(spans.one("POST /caption"));
    assert!(spans.one("fetch").end_time_unix_nano <= spans.one("decode").start_time_unix_nano);
    let all = format!("{spans:?}");
    assert!(!all.contains("private") && !all.contains("cdn.example"), "{all}");
    let head = origin.heads().concat().to_ascii_lowercase();
    assert!(!head.contains("traceparent"), "hosts of images learn nothing about traces: {head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_and_foreign_shapes_are_traced_and_probes_are_not() {
    let collector = Collector::start();
    let app = traced_with(&to(&collector), |config| config.http.mcp.enabled = true);
    for path in ["/health/live", "/health/ready", "/metrics", "/info", "/v1/models", "/"] {
        app.get(path).await;
    }
    assert_eq!(app.json("/nowhere", &json!({})).await.header("traceresponse"), "");
    let data = format!("data:image/png;base64,{}", base64(&png(1)));
    let content = json!([{"type": "image_url", "image_url": {"url": data}}]);
    let chat = json!({"model": "blip-server", "messages": [{"role": "user", "content": content}]});
    assert_eq!(app.json("/v1/chat/completions", &chat).await.status, 200);
    let arguments = json!({"image": base64(&png(2))});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "caption", "arguments": arguments}});
    let mut request = json_request("/mcp", &call);
    let accepted = "application/json, text/event-stream".parse().unwrap();
    request.headers_mut().insert("accept", accepted);
    assert_eq!(app.send(request).await.status, 200);
    let spans = exported(&app, &collector);
    let servers: Vec<&str> =
        spans.names().into_iter().filter(|name| name.starts_with("POST")).collect();
    assert_eq!(servers, ["POST /mcp", "POST /v1/chat/completions"]);
    for server in servers {
        let below = spans.below(spans.one(server));
        assert!(below.contains(&"vision") && below.contains(&"text"), "{server}: {below:?}");
    }
}
