//! The exporter: its header fields, its bounds, and collectors that do not do their part.

use std::net::TcpListener;
use std::time::Duration;

use blip_server::telemetry::trace::TraceSettings;
use serde_json::json;

use super::{exported, to, traced};
use crate::support::collector::{Behaviour, Collector};
use crate::support::{TestApp, base64, png};

async fn caption(app: &TestApp) {
    app.json("/caption", &json!({"image": base64(&png(1))})).await.ok();
}

fn dropped(app: &TestApp, reason: &str) -> u64 {
    app.metrics.trace_spans_dropped_total.with_label_values(&[reason]).get()
}

/// Settings from text, as a settings file has them.
fn with(settings: &TraceSettings, text: &serde_json::Value) -> TraceSettings {
    let mut written = serde_json::to_value(settings).unwrap();
    for (key, value) in text.as_object().unwrap() {
        written[key] = value.clone();
    }
    serde_json::from_value(written).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_have_the_header_fields_and_the_compression_of_the_settings() {
    let collector = Collector::start();
    let text = json!({"headers": ["x-key=a%20b"], "compression": "gzip"});
    let app = traced(&with(&to(&collector), &text));
    caption(&app).await;
    let count = exported(&app, &collector).0.len() as u64;
    let heads = collector.heads();
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0]["x-key"], "a b");
    assert_eq!(heads[0]["content-type"], "application/x-protobuf");
    assert_eq!(heads[0]["content-encoding"], "gzip");
    assert_eq!(app.metrics.trace_spans_exported_total.get(), count);
    assert_eq!(app.metrics.trace_spans_failed_total.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_batch_is_exported_at_once() {
    let collector = Collector::start();
    let app = traced(&TraceSettings { max_batch_spans: 5, ..to(&collector) });
    caption(&app).await;
    app.until("an export", |_| !collector.heads().is_empty()).await;
    let spans = exported(&app, &collector).0.len();
    // No export has more spans than the settings say.
    assert_eq!(collector.heads().len(), spans.div_ceil(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_busy_is_asked_again() {
    let collector = Collector::behaving(Behaviour { unavailable: 1, ..Behaviour::default() });
    let app = traced(&to(&collector));
    caption(&app).await;
    assert!(!exported(&app, &collector).0.is_empty());
    assert_eq!(collector.refused(), 1);
    assert_eq!(app.metrics.trace_spans_failed_total.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_the_collector_rejects_are_counted() {
    let collector = Collector::behaving(Behaviour { rejected: 2, ..Behaviour::default() });
    let app = traced(&to(&collector));
    caption(&app).await;
    let count = exported(&app, &collector).0.len() as u64;
    assert_eq!(app.metrics.trace_spans_failed_total.get(), 2);
    assert_eq!(app.metrics.trace_spans_exported_total.get(), count - 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_costs_spans_and_no_request() {
    let endpoint = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/v1/traces", listener.local_addr().unwrap())
    };
    let settings = TraceSettings {
        endpoint: Some(endpoint.parse().unwrap()),
        batch_delay: Duration::ZERO,
        ..TraceSettings::default()
    };
    let app = traced(&settings);
    caption(&app).await;
    app.until("a failure", |app| app.metrics.trace_spans_failed_total.get() > 0).await;
    assert_eq!(app.metrics.trace_spans_exported_total.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_neither_delays_nor_loses_requests() {
    // Connections wait in the backlog of this socket for ever.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let settings = TraceSettings {
        endpoint: Some(endpoint.parse().unwrap()),
        batch_delay: Duration::ZERO,
        timeout: Duration::from_secs(3600),
        export_timeout: Duration::from_secs(3600),
        max_queue_spans: 16,
        max_batch_spans: 8,
        ..TraceSettings::default()
    };
    let app = traced(&settings);
    for _ in 0..20 {
        caption(&app).await;
    }
    // At most one batch is on its way and 16 spans wait; 20 requests have at least four spans each.
    assert!(dropped(&app, "queue_full") >= 20 * 4 - 2 * 16, "{}", dropped(&app, "queue_full"));
    assert_eq!(app.metrics.trace_spans_exported_total.get(), 0);
    let start = std::time::Instant::now();
    app.state.tracer().unwrap().shut_down();
    assert!(start.elapsed() < Duration::from_secs(10), "the shutdown waits two seconds");
    assert!(dropped(&app, "shutdown") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_end_after_the_shutdown_are_counted() {
    let collector = Collector::start();
    let app = traced(&to(&collector));
    assert!(exported(&app, &collector).0.is_empty());
    caption(&app).await;
    assert!(dropped(&app, "shutdown") > 0);
}
