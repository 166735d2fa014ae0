//! The client's trace: continued, sampled or not, and answered.

use axum::http::Request;
use blip_server::http::CorsSettings;
use blip_server::telemetry::trace::TraceSettings;
use serde_json::json;

use super::{exported, to, traced, traced_with};
use crate::support::app::json_request;
use crate::support::collector::{Collector, hexadecimal};
use crate::support::{Answer, TestApp, base64, png};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn caption() -> Request<axum::body::Body> {
    json_request("/caption", &json!({"image": base64(&png(1))}))
}

/// Sends a caption request with these fields.
async fn send(app: &TestApp, fields: &[(&'static str, &str)]) -> Answer {
    let mut request = caption();
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    let answer = app.send(request).await;
    answer.ok();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_trace_is_continued() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = [("tracestate", "a=1"), ("tracestate", "b=2,c=3")];
    let answer = send(&app, &[&[("traceparent", parent.as_str())], &state[..]].concat()).await;
    let spans = exported(&app, &collector);
    let server = spans.one("POST /caption");
    spans.assert_nested_below(server);
    assert_eq!(hexadecimal(&server.trace_id), TRACE);
    assert_eq!(hexadecimal(&server.parent_span_id), SPAN);
    assert_eq!(server.trace_state, "a=1,b=2,c=3");
    // Sampled; the parent is known to be remote, and is.
    assert_eq!(server.flags & 0x301, 0x301);
    let response = format!("00-{TRACE}-{}-01", hexadecimal(&server.span_id));
    assert_eq!(answer.header("traceresponse"), response);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_parent_is_ignored() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let good = format!("00-{TRACE}-{SPAN}-01");
    let upper = format!("00-{}-{SPAN}-01", TRACE.to_uppercase());
    let cases: [&[(&'static str, &str)]; 3] = [
        &[("traceparent", "nonsense"), ("tracestate", "a=1")],
        &[("traceparent", &upper)],
        &[("traceparent", &good), ("traceparent", &good)],
    ];
    for fields in cases {
        let answer = send(&app, fields).await;
        assert!(!answer.header("traceresponse").contains(TRACE), "{fields:?}");
    }
    let spans = exported(&app, &collector);
    for server in spans.named("POST /caption") {
        assert!(server.parent_span_id.is_empty() && server.trace_state.is_empty(), "{server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_tracestate_is_left_out_and_the_parent_counts() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let long = format!("a={}", "1".repeat(600));
    for state in ["no equals sign", long.as_str()] {
        send(&app, &[("traceparent", &parent), ("tracestate", state)]).await;
    }
    let spans = exported(&app, &collector);
    for server in spans.named("POST /caption") {
        assert_eq!(hexadecimal(&server.trace_id), TRACE);
        assert_eq!(server.trace_state, "");
    }
}

/// How many of three requests are exported: without a parent, with a sampled one, and with one that is not sampled.
async fn sampled(sampler: &str, sample_ratio: f64) -> [usize; 3] {
    let collector = Collector::start();
    let settings =
        TraceSettings { sampler: sampler.parse().unwrap(), sample_ratio, ..to(&collector) };
    let app = traced(&settings);
    let mut flags = Vec::new();
    for fields in
        [None, Some(format!("00-{TRACE}-{SPAN}-01")), Some(format!("00-{TRACE}-{SPAN}-00"))]
    {
        let fields: Vec<_> = fields.iter().map(|field| ("traceparent", field.as_str())).collect();
        let answer = send(&app, &fields).await;
        flags.push(answer.header("traceresponse").ends_with(['1', '3']));
    }
    let spans = exported(&app, &collector);
    let servers = spans.named("POST /caption");
    let count = |parent: &str, trace: Option<&str>| {
        let mut found = servers.iter().filter(|span| {
            hexadecimal(&span.parent_span_id) == parent
                && trace.is_none_or(|trace| hexadecimal(&span.trace_id) == trace)
        });
        usize::from(found.next().is_some())
    };
    let counts = [count("", None), count(SPAN, Some(TRACE)), 0];
    let others = servers.len() - counts[0] - counts[1];
    let counts = [counts[0], counts[1], others];
    assert_eq!(flags, counts.map(|count| count > 0), "{sampler}: the flag in traceresponse");
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sampler_decides_and_by_default_the_client() {
    assert_eq!(sampled("parentbased_traceidratio", 1.0).await, [1, 1, 0]);
    assert_eq!(sampled("parentbased_traceidratio", 0.0).await, [0, 1, 0]);
    assert_eq!(sampled("parentbased_always_off", 1.0).await, [0, 1, 0]);
    assert_eq!(sampled("traceidratio", 0.0).await, [0, 0, 0]);
    assert_eq!(sampled("always_on", 0.0).await, [1, 1, 1]);
    assert_eq!(sampled("always_off", 1.0).await, [0, 0, 0]);
}

/// The samplers with a ratio of OpenTelemetry look at the lower half of the trace's id, which the client may choose.
#[tokio::test(flavor = "multi_thread")]
async fn the_id_that_a_client_chooses_does_not_decide_about_a_ratio() {
    for (lower_half, sample_ratio) in
        [("0000000000000001", 1e-12), ("ffffffffffffffff", 1.0 - 1e-12)]
    {
        let collector = Collector::start();
        let sampler = "traceidratio".parse().unwrap();
        let app = traced(&TraceSettings { sampler, sample_ratio, ..to(&collector) });
        let trace = format!("4bf92f3577b34da6{lower_half}");
        send(&app, &[("traceparent", &format!("00-{trace}-{SPAN}-00"))]).await;
        let spans = exported(&app, &collector);
        let servers = spans.named("POST /caption");
        assert_eq!(servers.len(), usize::from(sample_ratio > 0.5));
        assert!(servers.iter().all(|span| hexadecimal(&span.trace_id) == trace));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_propagator_each_request_begins_a_trace() {
    let collector = Collector::start();
    let settings = TraceSettings { propagators: vec!["none".to_owned()], ..to(&collector) };
    let app = traced(&settings);
    send(&app, &[("traceparent", &format!("00-{TRACE}-{SPAN}-00"))]).await;
    let spans = exported(&app, &collector);
    let server = spans.one("POST /caption");
    assert_ne!(hexadecimal(&server.trace_id), TRACE);
    assert!(server.parent_span_id.is_empty());
}

#[tokio::test]
async fn pages_of_allowed_origins_may_send_and_see_the_fields() {
    let collector = Collector::start();
    let allowed_origins = vec!["https://a.example".to_owned()];
    let cors = Some(CorsSettings { allowed_origins });
    let plain = TestApp::with(|config| config.http.cors.clone_from(&cors));
    let app = traced_with(&to(&collector), |config| config.http.cors = cors);
    for (app, is_traced) in [(&plain, false), (&app, true)] {
        let mut request = caption();
        request.headers_mut().insert("origin", "https://a.example".parse().unwrap());
        let answer = app.send(request).await;
        let exposed = answer.header("access-control-expose-headers");
        assert_eq!(exposed.contains("traceresponse"), is_traced, "{exposed}");
    }
}
