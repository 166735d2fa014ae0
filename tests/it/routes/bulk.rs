//! `/bulk`: lines in, lines out.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::app::json_request;
use crate::support::server::{read_to_end, read_until};
use crate::support::{TestApp, TestServer, base64, png};

fn text(lines: &[Value]) -> String {
    lines.iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect()
}

/// Parses the lines of an answer. The last one is the summary.
fn parsed(text: &str) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let summary = lines.pop().expect("a summary");
    assert!(summary["done"].is_u64() && summary["failed"].is_u64(), "{summary}");
    assert_eq!(summary["done"], lines.len());
    let failed = lines.iter().filter(|line| line.get("error").is_some()).count();
    assert_eq!(summary["failed"], failed);
    (lines, summary)
}

async fn bulk(app: &TestApp, body: impl Into<Body>) -> (Vec<Value>, Value) {
    let request = Request::post("/bulk").header("content-type", "application/x-ndjson");
    let answer = app.send(request.body(body.into()).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    parsed(answer.text())
}

/// The answers by the id or the number of their line.
fn by_name(lines: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |line: &Value| line.get("id").unwrap_or(&line["line"]).to_string();
    lines.into_iter().map(|line| (name(&line), line)).collect()
}

/// A body that sends this text and then waits until the sender is dropped.
fn open_body(text: String) -> (tokio::sync::oneshot::Sender<()>, Body) {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let first =
        futures_util::stream::once(async move { Ok::<_, std::io::Error>(Bytes::from(text)) });
    let wait = futures_util::stream::once(async move {
        let _ = ended.await;
        Ok(Bytes::new())
    });
    (end, Body::from_stream(first.chain(wait)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_answers_as_its_own_route_does() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let requests = [
        ("/caption", "caption", json!({"image": image, "num_beams": 2})),
        ("/vqa", "vqa", json!({"image": image, "question": "a cat", "model": "fake-vqa"})),
        ("/similarity", "similarity", json!({"image": image, "texts": ["a cat", "a dog"]})),
        ("/embeddings", "embeddings", json!({"text": "a cat"})),
        ("/classify", "classify", json!({"image": image, "labels": ["a cat", "a dog"]})),
    ];
    let mut lines = Vec::new();
    for (number, (_, task, request)) in requests.iter().enumerate() {
        let mut line = request.clone();
        line["task"] = json!(task);
        line["id"] = if number % 2 == 0 { json!(number) } else { json!(format!("nr {number}")) };
        lines.push(line);
    }
    let (answers, summary) = bulk(&app, text(&lines)).await;
    assert_eq!(summary, json!({"done": 5, "failed": 0}));
    let answers = by_name(answers);
    for (line, (path, _, request)) in lines.iter().zip(&requests) {
        let answer = &answers[&line["id"].to_string()];
        assert_eq!((&answer["status"], &answer["id"]), (&json!(200), &line["id"]));
        assert_eq!(answer["result"], app.json(path, request).await.ok(), "{path}");
    }
    let lines = |code: &str| app.metrics.bulk_lines_total.with_label_values(&[code]).get();
    assert_eq!((lines("ok"), app.metrics.bulk_held_bytes.get()), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_line_is_answered_in_its_place_and_the_others_are_served() {
    let app = TestApp::with(|config| config.http.bulk.max_line_bytes = 400);
    let long = format!(
        "{{\"id\": \"long\", \"task\": \"embeddings\", \"text\": \"{}\"}}",
        "a".repeat(400)
    );
    let body = [
        "{\"task\": \"embeddings\", \"text\": \"a cat\"}",
        "",
        "no json",
        "[1]",
        "{\"id\": \"a\"}",
        "{\"task\": \"dance\", \"id\": \"b\"}",
        "{\"id\": {}, \"task\": \"caption\"}",
        "{\"id\": \"c\", \"task\": \"embeddings\", \"text\": \"a cat\", \"texts\": 5}",
        "{\"id\": \"d\", \"task\": \"caption\", \"image\": \"eA==\"}",
        "{\"id\": \"e\", \"task\": \"caption\", \"image\": \"eA==\", \"stream\": true}",
        &long,
        "{\"id\": \"f\", \"task\": \"embeddings\", \"text\": \"a cat\", \"model\": \"nope\"}",
        // The last line needs no line break.
        "{\"id\": \"g\", \"task\": \"embeddings\", \"text\": \"a dog\"}",
    ];
    let (answers, summary) = bulk(&app, body.join("\n")).await;
    assert_eq!(summary, json!({"done": 12, "failed": 10}));
    let answers = by_name(answers);
    assert_eq!(answers["1"]["status"], 200);
    assert_eq!(answers["\"g\""]["status"], 200);
    for (name, status, code, field) in [
        ("3", 400, "invalid_request", None),
        ("4", 400, "invalid_request", None),
        ("\"a\"", 400, "invalid_request", Some("task")),
        ("\"b\"", 400, "invalid_request", Some("task")),
        ("7", 400, "invalid_request", Some("id")),
        ("\"c\"", 400, "invalid_request", Some("texts")),
        ("\"d\"", 415, "unsupported_image_format", Some("image")),
        ("\"e\"", 400, "invalid_request", Some("stream")),
        ("11", 413, "payload_too_large", None),
        ("\"f\"", 404, "model_not_found", Some("model")),
    ] {
        let answer = answers.get(name).unwrap_or_else(|| panic!("{name}: {answers:?}"));
        assert_eq!(answer["status"], status, "{answer}");
        assert_eq!(answer["error"]["code"], code, "{answer}");
        let first = &answer["error"]["errors"][0]["field"];
        assert_eq!(first.as_str(), field, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_with_a_wrong_field_of_its_own_keeps_its_id() {
    let app = TestApp::start();
    let body = [
        "{\"id\": \"a\", \"task\": 5}",
        "{\"deadline_ms\": -1, \"id\": 70, \"task\": \"caption\"}",
        "{\"task\": \"embeddings\", \"text\": \"a cat\", \"deadline_ms\": \"soon\", \"id\": \"c\"}",
        "{\"id\": 12345678901234567890123, \"task\": \"embeddings\", \"text\": \"a cat\"}",
        "{\"id\": 18446744073709551615, \"task\": \"embeddings\", \"text\": \"a cat\", \"deadline_ms\": 1e4}",
        "{\"id\": \"f\", \"task\": \"caption\", }",
        "{\"id\": [1], \"task\": \"dance\"}",
    ];
    let (answers, summary) = bulk(&app, body.join("\n")).await;
    assert_eq!(summary, json!({"done": 7, "failed": 6}));
    let answers = by_name(answers);
    assert_eq!(answers["18446744073709551615"]["status"], 200);
    for (name, field, words) in [
        ("\"a\"", "task", "integer `5`, expected caption, vqa, similarity, embeddings or classify"),
        ("70", "deadline_ms", "integer `-1`, expected an integer from 0"),
        ("\"c\"", "deadline_ms", "expected an integer from 0"),
        ("4", "id", "too large to be returned exactly; send it as a string"),
        ("6", "", "this line is not valid JSON"),
        ("7", "id", "a string of at most 4096 bytes, or a number"),
    ] {
        let answer = answers.get(name).unwrap_or_else(|| panic!("{name}: {answers:?}"));
        assert_eq!(answer["status"], 400, "{answer}");
        let error = &answer["error"];
        assert_eq!(error["errors"][0]["field"].as_str().unwrap_or_default(), field, "{answer}");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains(words), "{detail}");
        assert!(!detail.contains(" line 1") && !detail.contains("u64"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_string_is_refused() {
    let app = TestApp::start();
    let request =
        Request::post("/bulk?task=caption").header("content-type", "application/x-ndjson");
    let answer = app.send(request.body(Body::from("{}\n")).unwrap()).await;
    let problem = answer.refused(400, "invalid_request");
    assert!(problem["detail"].as_str().unwrap().contains("query string"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_come_in_any_pieces() {
    let app = TestApp::start();
    let lines = text(&[
        json!({"id": 1, "task": "embeddings", "text": "a cat"}),
        json!({"id": 2, "task": "embeddings", "text": "a dog"}),
    ]);
    for size in [1, 3, 50, 1000] {
        let pieces: Vec<_> = lines
            .as_bytes()
            .chunks(size)
            .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
            .collect();
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let (answers, summary) = bulk(&app, body).await;
        assert_eq!(summary, json!({"done": 2, "failed": 0}), "{size}");
        assert!(answers.iter().all(|answer| answer["status"] == 200));
    }
    let (answers, summary) = bulk(&app, "\r\n \n").await;
    assert_eq!((answers.len(), summary), (0, json!({"done": 0, "failed": 0})));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_refused_and_interactive_calls_go_first() {
    // The first image is being encoded; meanwhile, a hundred others wait on two rows.
    let app = TestApp::with(|config| {
        config.engine.capacity_rows = 4;
        config.engine.max_batch_images = 1;
    });
    app.control.hold();
    let lines: Vec<Value> = (0..100)
        .map(|id| json!({"id": id, "task": "caption", "image": base64(&png(id))}))
        .collect();
    let router = app.router.clone();
    let request =
        Request::post("/bulk").header("host", "blip.test").body(Body::from(text(&lines))).unwrap();
    let bulk = tokio::spawn(async move {
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        parsed(std::str::from_utf8(&bytes).unwrap())
    });
    app.control.wait_until_held();
    let interactive: Vec<_> = (200..204)
        .map(|mark| {
            let request = json_request("/caption", &json!({"image": base64(&png(mark))}));
            let router = app.router.clone();
            tokio::spawn(async move {
                tower::ServiceExt::oneshot(router, request).await.unwrap().status()
            })
        })
        .collect();
    app.until("the interactive calls wait", |app| app.metrics.queue_rows.get() > 4).await;
    app.control.release();
    for call in interactive {
        assert_eq!(call.await.unwrap(), 200);
    }
    let (answers, summary) = bulk.await.unwrap();
    assert_eq!(summary, json!({"done": 100, "failed": 0}));
    assert_eq!(by_name(answers).len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drain_answers_what_was_read_and_reads_no_more() {
    let app = TestApp::start();
    app.control.hold();
    let lines: Vec<Value> = (0..20)
        .map(|id| json!({"id": id, "task": "embeddings", "image": base64(&png(id))}))
        .collect();
    // The last line is not complete.
    let (end, body) = open_body(text(&lines) + "{\"id\": \"unread\"");
    let request = Request::post("/bulk").header("host", "blip.test").body(body).unwrap();
    let router = app.router.clone();
    let bulk = tokio::spawn(async move {
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        parsed(std::str::from_utf8(&bytes).unwrap())
    });
    app.control.wait_until_held();
    app.until("all lines", |app| app.metrics.bulk_lines_in_flight.get() == 20).await;
    app.handle.drain();
    app.control.release();
    let (answers, summary) = bulk.await.unwrap();
    assert_eq!((&summary["done"], &summary["failed"]), (&json!(20), &json!(0)));
    assert_eq!(summary["error"]["code"], "shutting_down");
    assert_eq!(by_name(answers).len(), 20);
    drop(end);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_leaves_ends_its_work() {
    let app = TestApp::start();
    app.control.hold();
    let lines: Vec<Value> =
        (0..50).map(|id| json!({"task": "caption", "image": base64(&png(id))})).collect();
    let (_end, body) = open_body(text(&lines));
    let request = Request::post("/bulk").body(body).unwrap();
    let response = app.open(request).await;
    app.control.wait_until_held();
    drop(response);
    app.until("the request ended", |app| app.metrics.bulk_requests.get() == 0).await;
    app.until("no lines", |app| app.metrics.bulk_lines_in_flight.get() == 0).await;
    app.control.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_above_the_limit_wait_for_their_turn() {
    let app = TestApp::with(|config| config.http.bulk.max_requests = 1);
    let (end, body) = open_body(String::new());
    let first = app.open(Request::post("/bulk").body(body).unwrap()).await;
    app.until("a turn", |app| app.metrics.bulk_requests.get() == 1).await;
    let line = "{\"task\": \"embeddings\", \"text\": \"a cat\"}";
    let second = app.open(Request::post("/bulk").body(Body::from(line)).unwrap()).await;
    app.until("waiting", |app| app.metrics.bulk_requests_waiting.get() == 1).await;
    assert_eq!(second.status(), 200, "the head does not wait");
    drop(end);
    for (response, done) in [(first, 0), (second, 1)] {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let (_, summary) = parsed(std::str::from_utf8(&bytes).unwrap());
        assert_eq!(summary, json!({"done": done, "failed": 0}));
    }
    app.until("no turns", |app| app.metrics.bulk_requests.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_their_turn_end_with_the_server() {
    let app = TestApp::with(|config| config.http.bulk.max_requests = 1);
    let (_end, body) = open_body(String::new());
    let _first = app.open(Request::post("/bulk").body(body).unwrap()).await;
    app.until("a turn", |app| app.metrics.bulk_requests.get() == 1).await;
    let waiting = app.open(Request::post("/bulk").body(Body::from("{}")).unwrap()).await;
    app.until("waiting", |app| app.metrics.bulk_requests_waiting.get() == 1).await;
    app.handle.drain();
    let bytes = waiting.into_body().collect().await.unwrap().to_bytes();
    let (answers, summary) = parsed(std::str::from_utf8(&bytes).unwrap());
    assert_eq!((answers.len(), &summary["error"]["code"]), (0, &json!("shutting_down")));
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_are_refused() {
    let app = TestApp::start();
    app.raw("/bulk", "multipart/form-data; boundary=x", Vec::new())
        .await
        .refused(415, "unsupported_media_type");
    bulk(&app, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn long_lines_of_many_requests_do_not_wait_for_each_other() {
    // Together the lines are larger than what bulk work may hold.
    let app = TestApp::with(|config| {
        config.engine.capacity_bytes = 40 << 20;
        config.http.bulk.max_requests = 8;
    });
    let line = |id: usize| {
        let padding = " ".repeat(8 << 20);
        format!("{{\"id\": {id}, \"task\": \"embeddings\",{padding}\"text\": \"a cat\"}}\n")
            .repeat(2)
    };
    let requests = (0..8).map(|id| bulk(&app, line(id)));
    for (answers, summary) in futures_util::future::join_all(requests).await {
        assert_eq!(summary, json!({"done": 2, "failed": 0}), "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_answers_hold_the_turn_of_their_request_and_nothing_in_the_engine() {
    let app = TestApp::with(|config| {
        config.http.bulk.max_requests = 1;
        config.http.bulk.max_held_bytes = 10_000;
    });
    let body = "{\"task\": \"embeddings\", \"text\": \"a cat\"}\nno json\n".repeat(2000);
    let unread = app.open(Request::post("/bulk").body(Body::from(body)).unwrap()).await;
    app.until("full", |app| app.metrics.bulk_held_bytes.get() > 10_000).await;
    app.until("nothing in the engine", |app| app.metrics.queue_bytes.get() == 0).await;
    assert!(app.metrics.bulk_held_bytes.get() < 200_000);
    let waiting = app.open(Request::post("/bulk").body(Body::from("no json")).unwrap()).await;
    app.until("waiting", |app| app.metrics.bulk_requests_waiting.get() == 1).await;
    drop(unread);
    let bytes = waiting.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(parsed(std::str::from_utf8(&bytes).unwrap()).1, json!({"done": 1, "failed": 1}));
    app.until("all have left", |app| app.metrics.bulk_requests.get() == 0).await;
    assert_eq!(app.metrics.bulk_held_bytes.get(), 0);
}

/// Plain `requests` sends the whole body before it reads, whatever the server sends meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_sends_everything_before_it_reads_never_hangs() {
    let server = TestServer::start(|config| {
        // Far less than what the answers take: only the sockets and this setting may hold them.
        config.http.bulk.max_held_bytes = 64 << 20;
        config.http.connections.write_timeout = Duration::from_millis(300);
    })
    .await;
    let line = json!({"task": "similarity", "image": base64(&png(1)), "texts": vec!["a cat"; 100]});
    let body = format!("{line}\n").repeat(3000);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /bulk HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let sent =
        tokio::time::timeout(Duration::from_secs(120), stream.write_all(body.as_bytes())).await;
    sent.expect("sent without reading").unwrap();
    let mut answer = Vec::new();
    let read =
        tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut answer)).await;
    read.expect("read to the end").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.contains("{\"done\":3000,\"failed\":0}\n"),
        "{}",
        &answer[answer.len().saturating_sub(200)..]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_continue_is_asked_for_its_lines() {
    let server = TestServer::start(|_| {}).await;
    let lines = text(&[json!({"task": "embeddings", "text": "a cat"})]);
    let head = format!(
        "POST /bulk HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\n\
         content-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        lines.len()
    );
    let mut stream = server.send(head.as_bytes()).await;
    let asked = read_until(&mut stream, "\r\n\r\n").await;
    assert!(asked.starts_with("HTTP/1.1 100 Continue\r\n\r\n"), "{asked}");
    stream.write_all(lines.as_bytes()).await.unwrap();
    let answer = asked + &read_to_end(stream).await;
    assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("{\"done\":1,\"failed\":0}"), "{answer}");
}
