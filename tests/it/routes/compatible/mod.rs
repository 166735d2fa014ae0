//! The routes that speak the APIs of others, compared with this server's own routes.

mod huggingface;
mod ollama;
mod openai;

use serde_json::{Value, json};

use crate::support::{Answer, TestApp, base64, png};

/// The caption of this server's own route.
async fn own_caption(app: &TestApp, mark: u8) -> String {
    let answer = app.json("/caption", &json!({"image": base64(&png(mark))})).await.ok();
    answer["captions"][0]["text"].as_str().unwrap().to_owned()
}

/// The answer of this server's own route.
async fn own_answer(app: &TestApp, mark: u8, question: &str) -> String {
    let request = json!({"image": base64(&png(mark)), "question": question});
    let answer = app.json("/vqa", &request).await.ok();
    answer["answers"][0]["answer"].as_str().unwrap().to_owned()
}

/// The JSON of a 200 that may contain null.
#[track_caller]
fn json_of(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
    serde_json::from_slice(&answer.body).unwrap()
}

/// The body of an error with this status.
#[track_caller]
fn error_of(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    body["error"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_switches_the_routes_off() {
    let app = TestApp::with(|config| config.http.compat.enabled = false);
    for path in ["/v1/models", "/api/tags", "/api/version"] {
        assert_eq!(app.get(path).await.status, 404, "{path}");
    }
    let document = app.get("/openapi.json").await.ok();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.keys().all(|path| !path.starts_with("/v1/") && !path.starts_with("/hf/")));
    assert!(paths.contains_key("/caption"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_as_inputs_of_the_same_tasks() {
    let app = TestApp::start();
    let count = |task: &str, model: &str| {
        app.metrics.items_total.with_label_values(&[task, model, "ok"]).get()
    };
    let image = base64(&png(1));
    let part = json!({"type": "image_url", "image_url": {"url": image}});
    let chat = json!({"model": "caption", "messages": [{"role": "user", "content": [part]}]});
    json_of(&app.json("/v1/chat/completions", &chat).await);
    json_of(&app.json("/api/generate", &json!({"images": [image], "stream": false})).await);
    json_of(&app.raw("/hf/image-to-text", "", png(1)).await);
    assert_eq!(count("caption", "fake-caption"), 3);
    json_of(&app.json("/v1/embeddings", &json!({"input": ["a", "b"]})).await);
    assert_eq!(count("embeddings", "fake-retrieval"), 2);
    let labels = ["/v1/embeddings", "POST", "200", "ok"];
    assert_eq!(app.metrics.http_requests_total.with_label_values(&labels).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_answers_every_client_that_it_runs() {
    use axum::body::Body;
    use axum::http::Request;
    let app = TestApp::start();
    let plain = app.get("/").await;
    assert_eq!((plain.status.as_u16(), plain.text()), (200, "blip-server is running"));
    let head = app.send(Request::head("/").body(Body::empty()).unwrap()).await;
    assert_eq!(head.status, 200);
    let page = Request::get("/").header("accept", "text/html,*/*").body(Body::empty()).unwrap();
    let page = app.open(page).await;
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_no_object() {
    let app = TestApp::start();
    let image = base64(&png(1));
    for (path, request) in [
        ("/hf/image-to-text", json!({"inputs": image, "parameters": [2]})),
        (
            "/hf/image-to-text",
            json!({"inputs": image, "parameters": {"generation_parameters": [2]}}),
        ),
        (
            "/hf/zero-shot-image-classification",
            json!({"inputs": image, "parameters": [["a", "b"]]}),
        ),
        ("/api/generate", json!({"images": [image], "stream": false, "options": [0.5, 1]})),
        ("/api/chat", json!({"stream": false, "messages": [["user", "hi", [image]]]})),
        (
            "/v1/chat/completions",
            json!({"messages": [["user", [{"type": "image_url", "image_url": image}]]]}),
        ),
        ("/v1/chat/completions", json!({"messages": [{"content": [["image_url", null, image]]}]})),
        (
            "/v1/chat/completions",
            json!({"stream_options": [true], "messages": [{"content": [{"image_url": image}]}]}),
        ),
    ] {
        let answer = app.json(path, &request).await;
        assert_eq!(answer.status, 400, "{path}: {request}");
        assert!(answer.text().contains("expected an object"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_numbers_have_any_spelling() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let width = app.json("/embeddings", &json!({"text": "a"})).await.ok()["dimensions"].as_f64();
    for (path, request) in [
        (
            "/v1/chat/completions",
            json!({"max_tokens": 4.0, "n": 1.0, "messages": [{"content": [{"image_url": image}]}]}),
        ),
        ("/v1/embeddings", json!({"input": "a", "dimensions": width})),
        (
            "/api/generate",
            json!({"images": [image], "stream": false, "options": {"num_predict": 4.0}}),
        ),
    ] {
        let answer = app.json(path, &request).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_without_messages_loads_the_model() {
    let app = TestApp::start();
    for request in [json!({}), json!({"messages": null}), json!({"messages": []})] {
        let answer = app.json("/api/chat", &request).await;
        assert_eq!(answer.status, 200, "{request}: {}", answer.text());
        assert_eq!(answer.ok()["done_reason"], "load");
    }
}
