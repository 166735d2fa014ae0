//! The server as a process: its log, its threads, and its shutdown, which exports the last spans and waits for no
//! collector.

use std::net::TcpListener;

use serde_json::json;

use crate::support::collector::{Collector, hexadecimal};
use crate::support::process::{read, send};
use crate::support::{ServerProcess, base64, png};

fn caption(address: &str) -> String {
    caption_with(address, "")
}

/// The answer to a caption request with further header lines.
fn caption_with(address: &str, fields: &str) -> String {
    let body = json!({"image": base64(&png(1))}).to_string();
    let length = body.len();
    let head = format!(
        "POST /caption HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{fields}content-length: {length}\r\n\r\n"
    );
    read(send(address, &(head + &body)))
}

#[test]
fn a_shutdown_exports_the_last_spans() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let settings = [
        ("TRACING__ENDPOINT", endpoint.as_str()),
        ("TRACING__BATCH_DELAY_MS", "86400000"),
        ("TRACING__SERVICE_NAME", "captions"),
    ];
    let mut server = ServerProcess::start(&[], &settings);
    let address = server.public_address();
    let answer = caption(&address);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("traceresponse: 00-"));
    server.terminate();
    let (log, code) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(collector.spans().names().contains(&"POST /caption"));
    assert_eq!(collector.resource()["service.name"], "captions");
}

#[test]
fn the_log_has_the_ids_of_the_exported_span() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    let mut server = ServerProcess::start(&[], &[("TRACING__ENDPOINT", endpoint.as_str())]);
    let address = server.public_address();
    let answer = caption(&address);
    let (_, response) = answer.split_once("traceresponse: 00-").unwrap();
    let (trace, span) = (&response[..32], &response[33..49]);
    let line = server.line_with("request answered");
    assert!(line.contains(&format!("trace_id={trace}")), "{line}");
    assert!(line.contains(&format!("span_id={span}")), "{line}");
    server.terminate();
    assert_eq!(server.end().1, Some(0));
    let spans = collector.spans();
    let exported = spans.one("POST /caption");
    assert_eq!(hexadecimal(&exported.trace_id), trace);
    assert_eq!(hexadecimal(&exported.span_id), span);
}

#[test]
fn without_tracing_the_log_has_the_clients_id_and_no_field_is_sent() {
    let mut server = ServerProcess::start(&[], &[]);
    let address = server.public_address();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer =
        caption_with(&address, &format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("traceresponse"), "{answer}");
    let line = server.line_with("request answered");
    assert!(line.contains(&format!("trace_id={trace}")), "{line}");
    assert!(!line.contains("span_id"), "{line}");
}

#[test]
fn a_shutdown_does_not_wait_for_a_collector_that_never_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let settings = [
        ("TRACING__ENDPOINT", endpoint.as_str()),
        ("TRACING__BATCH_DELAY_MS", "0"),
        ("TRACING__TIMEOUT_MS", "86400000"),
        ("TRACING__EXPORT_TIMEOUT_MS", "86400000"),
    ];
    let mut server = ServerProcess::start(&[], &settings);
    let address = server.public_address();
    for _ in 0..3 {
        assert!(caption(&address).starts_with("HTTP/1.1 200"));
    }
    server.terminate();
    let (log, code) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.trim_end().ends_with("stopped"), "{log}");
}

#[test]
fn without_an_endpoint_there_is_no_thread() {
    let collector = Collector::start();
    let endpoint = collector.endpoint();
    for (settings, is_traced) in
        [(&[][..], false), (&[("TRACING__ENDPOINT", endpoint.as_str())][..], true)]
    {
        let mut server = ServerProcess::start(&[], settings);
        server.public_address();
        let threads = server.thread_names();
        assert!(threads.iter().any(|name| name == "blip-worker-0"), "{threads:?}");
        assert_eq!(threads.iter().any(|name| name == "traces"), is_traced, "{threads:?}");
    }
}
