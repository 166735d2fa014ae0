//! `/mcp`: messages of the Model Context Protocol over HTTP. `tests/compatibility/mcp_python.py` speaks it with the official
//! client.

use axum::body::Body;
use axum::http::Request;
use axum::http::request::Builder;
use blip_server::http::{ApiKey, AuthSettings};
use serde_json::{Value, json};

use crate::support::app::TestConfig;
use crate::support::{Answer, TestApp, base64, png};

fn enabled(config: &mut TestConfig) {
    config.http.mcp.enabled = true;
}

fn message() -> Builder {
    Request::post("/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
}

fn call(method: &str, params: &Value) -> Body {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string().into()
}

async fn send(app: &TestApp, method: &str, params: &Value) -> Answer {
    app.send(message().body(call(method, params)).unwrap()).await
}

/// The result of a message that was answered.
async fn result(app: &TestApp, method: &str, params: &Value) -> Value {
    let answer = send(app, method, params).await.ok();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)), "{answer}");
    assert!(answer.get("error").is_none(), "{answer}");
    answer["result"].clone()
}

/// Calls a tool. Returns its text and the result.
async fn tool(app: &TestApp, name: &str, arguments: &Value) -> (String, Value) {
    let called = result(app, "tools/call", &json!({"name": name, "arguments": arguments})).await;
    assert_eq!(called["content"].as_array().unwrap().len(), 1, "{called}");
    assert_eq!(called["content"][0]["type"], "text");
    (called["content"][0]["text"].as_str().unwrap().to_owned(), called)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_is_off_by_default() {
    let app = TestApp::start();
    send(&app, "ping", &json!({})).await.refused(404, "route_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_learns_the_tools_of_the_loaded_models() {
    let app = TestApp::with(enabled);
    let about = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    });
    let welcome = result(&app, "initialize", &about).await;
    assert_eq!(welcome["protocolVersion"], "2025-06-18");
    assert_eq!(welcome["serverInfo"]["name"], "blip-server");
    assert!(welcome["instructions"].as_str().unwrap().contains("caption"));
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    let noted = app.send(message().body(note.into()).unwrap()).await;
    assert_eq!((noted.status.as_u16(), noted.text()), (202, ""));
    let listed = result(&app, "tools/list", &json!({})).await;
    let tools = listed["tools"].as_array().unwrap();
    let names: Vec<&str> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["caption", "ask", "match", "classify", "rank"]);
    for tool in tools {
        let schema = &tool["inputSchema"];
        assert_eq!(schema["type"], "object", "{tool}");
        assert_eq!(schema["additionalProperties"], false, "{tool}");
        // A path is read only by the command, and this server fetches no URLs.
        assert!(schema["properties"].get("path").is_none(), "{tool}");
        assert!(!schema.to_string().contains("https://"), "{tool}");
        assert_eq!(tool["annotations"]["readOnlyHint"], true, "{tool}");
    }
    let only_captions = TestApp::with(|config| {
        enabled(config);
        config.models.retain(|model| model.role().name() == "caption");
    });
    let listed = result(&only_captions, "tools/list", &json!({})).await;
    assert_eq!(listed["tools"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tool_answers_as_its_route_does() {
    let app = TestApp::with(enabled);
    let image = base64(&png(1));
    for (name, route, arguments) in [
        ("caption", "/caption", json!({"image": image, "num_beams": 2})),
        ("ask", "/vqa", json!({"image": image, "questions": ["a cat"]})),
        ("match", "/similarity", json!({"image": image, "texts": ["a cat", "a dog"]})),
        ("classify", "/classify", json!({"image": image, "labels": ["a cat", "a dog"]})),
        ("rank", "/rank", json!({"text": "a cat", "images": [image, base64(&png(2))]})),
    ] {
        let own = app.json(route, &arguments).await.ok();
        let (text, called) = tool(&app, name, &arguments).await;
        assert!(!text.is_empty(), "{name}");
        let answer = called["structuredContent"].as_object().unwrap();
        for (field, value) in own.as_object().unwrap() {
            assert_eq!(&answer[field], value, "{name}: {field}");
        }
        // No picture goes back.
        assert!(called.to_string().len() < 4000, "{name}: {called}");
    }
    // The id of the answer stands for the picture.
    let (text, called) = tool(&app, "caption", &json!({"image": image})).await;
    let id = called["structuredContent"]["image"]["id"].as_str().unwrap();
    assert!(text.ends_with(&format!("\nPicture: {id}")), "{text}");
    tool(&app, "caption", &json!({"image": id})).await;
    // The messages are counted once each, and the inputs under their tasks.
    let metrics = app.get("/metrics").await;
    let count = |line: &str| metrics.text().lines().any(|other| other == line);
    assert!(count(
        r#"blip_http_requests_total{code="ok",method="POST",route="/mcp",status="200"} 7"#
    ));
    assert!(metrics.text().contains(r#"route="/caption",status="200"} 1"#), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_tell_the_language_model_what_to_do() {
    let app = TestApp::with(enabled);
    let image = base64(&png(1));
    for (name, arguments, words) in [
        ("caption", json!({}), "image: is needed"),
        ("caption", json!({"image": "AAAA"}), "image"),
        ("caption", json!({"image": image, "stream": true}), "stream: no argument of caption"),
        ("caption", json!({"path": "/etc/hostname"}), "path: no argument of caption"),
        ("caption", json!({"image": "https://example.org/a.png"}), "fetch.enabled"),
        ("caption", json!({"image": image, "model": "none"}), "fake-"),
        ("match", json!({"image": image, "texts": [""]}), "texts[0]"),
        ("rank", json!({"text": "a cat"}), "images"),
        ("ask", json!({"image": image, "questions": "how many?"}), "questions"),
    ] {
        let (text, called) = tool(&app, name, &arguments).await;
        assert!(text.contains(words), "{arguments}: {text}");
        assert_eq!(called["isError"], true, "{called}");
        assert!(called.get("structuredContent").is_none(), "{called}");
    }
    let answer = send(&app, "tools/call", &json!({"name": "paint", "arguments": {}})).await.ok();
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("caption, ask, match"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_get_problems() {
    let app = TestApp::with(enabled);
    app.get("/mcp").await.refused(405, "method_not_allowed");
    // The answer is JSON, whatever the client accepts.
    let curl = Request::post("/mcp").header("content-type", "application/json; charset=utf-8");
    app.send(curl.body(call("ping", &json!({}))).unwrap()).await.ok();
    let version = message().header("mcp-protocol-version", "1999-01-01");
    let refused = app.send(version.body(call("ping", &json!({}))).unwrap()).await;
    let problem = refused.refused(400, "invalid_request");
    assert!(problem["detail"].as_str().unwrap().contains("1999-01-01"), "{problem}");
    let text = Request::post("/mcp").header("accept", "application/json, text/event-stream");
    let refused = app.send(text.body(call("ping", &json!({}))).unwrap()).await;
    refused.refused(415, "unsupported_media_type");
    let broken = app.send(message().body("{".into()).unwrap()).await;
    assert!(broken.status.is_client_error(), "{}", broken.text());
    let foreign = message().header("origin", "https://evil.example");
    let refused = app.send(foreign.body(call("ping", &json!({}))).unwrap()).await;
    refused.refused(403, "origin_not_allowed");
    let small = TestApp::with(|config| {
        enabled(config);
        config.http.limits.max_body_bytes = 1 << 20;
    });
    let large = json!({"name": "caption", "arguments": {"image": "A".repeat(1 << 20)}});
    send(&small, "tools/call", &large).await.refused(413, "payload_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_needed_as_on_every_route() {
    let app = TestApp::with(|config| {
        enabled(config);
        config.http.auth = Some(AuthSettings {
            keys: vec![ApiKey::parse("0123456789abcdef").unwrap()],
            keys_file: None,
            failed_attempts_per_minute: 60,
        });
    });
    send(&app, "ping", &json!({})).await.refused(401, "unauthorized");
    let with_key = message().header("authorization", "Bearer 0123456789abcdef");
    let arguments = json!({"name": "caption", "arguments": {"image": base64(&png(1))}});
    let answer = app.send(with_key.body(call("tools/call", &arguments)).unwrap()).await.ok();
    assert_eq!(answer["result"]["isError"], false, "{answer}");
}

/// The messages of many clients hold no more capacity than those of other routes, and give all of it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_gives_its_capacity_back() {
    let app = TestApp::with(|config| {
        enabled(config);
        // Room for the body of the call that a message leads to, but not for both bodies at once.
        config.engine.capacity_bytes = 4 << 20;
    });
    let large = "A".repeat(2 << 20);
    for _ in 0..4 {
        let (text, _) = tool(&app, "caption", &json!({"image": large})).await;
        assert!(text.contains("image"), "{text}");
        assert!(!text.contains("busy"), "{text}");
        app.until("nothing is held", |app| app.metrics.queue_bytes.get() == 0).await;
    }
    let (text, called) = tool(&app, "caption", &json!({"image": base64(&png(1))})).await;
    assert_eq!(called["isError"], false, "{text}");
}

/// A list of a million numbers would take a hundred times its size in the SDK.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_many_values_is_refused_before_the_protocol_sees_it() {
    let app = TestApp::with(enabled);
    let numbers = json!({"name": "caption", "arguments": {"image": vec![0; 100_000]}});
    let problem = send(&app, "tools/call", &numbers).await.refused(400, "invalid_request");
    assert!(problem["detail"].as_str().unwrap().contains("4096 values"), "{problem}");
    let numbers = json!({"x": vec![0; 100_000]});
    send(&app, "any", &numbers).await.refused(400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_an_invalid_message_says_what_a_message_needs() {
    let app = TestApp::with(enabled);
    for (body, words) in [
        ("{", "JSON"),
        ("[{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"ping\"}]", "batches"),
        ("{\"jsonrpc\": \"2.0\", \"id\": null, \"method\": \"ping\"}", "JSON-RPC"),
        ("{\"id\": 1, \"method\": \"ping\"}", "JSON-RPC"),
    ] {
        let refused = app.send(message().body(body.into()).unwrap()).await;
        let problem = refused.refused(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{body}: {problem}");
    }
    let list = send(&app, "tools/call", &json!([])).await.refused(400, "invalid_request");
    assert!(list["detail"].as_str().unwrap().contains("params"), "{list}");
    for params in [json!({"name": "caption", "arguments": "{}"}), json!({"arguments": {}})] {
        let answer = send(&app, "tools/call", &params).await.ok();
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("arguments"), "{answer}");
    }
    let answer = send(&app, "any/other", &json!({})).await.ok();
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
}

/// A tool that fails is answered with status 200; operators see the failure all the same.
#[tokio::test(flavor = "multi_thread")]
async fn failures_of_tools_are_counted() {
    let app = TestApp::with(|config| {
        enabled(config);
        config.engine.capacity_rows = 1;
        config.http.limits.max_rows = 8;
    });
    let beams = json!({"image": base64(&png(1)), "num_beams": 8});
    let (_, called) = tool(&app, "caption", &beams).await;
    assert_eq!(called["isError"], true, "{called}");
    let metrics = app.get("/metrics").await;
    let line =
        metrics.text().lines().find(|line| line.contains("route=\"/mcp\"") && line.ends_with(" 1"));
    let line = line.unwrap_or_else(|| panic!("{}", metrics.text()));
    assert!(!line.contains("code=\"ok\""), "{line}");
}
