//! `/api/...`

use serde_json::{Value, json};

use super::{error_of, json_of, own_answer, own_caption};
use crate::support::{TestApp, base64, png};

/// The lines of a stream.
async fn lines(app: &TestApp, path: &str, request: &Value) -> Vec<Value> {
    let answer = app.json(path, request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn generate_and_chat_describe_the_last_image_whole_or_line_by_line() {
    let app = TestApp::start();
    let text = own_caption(&app, 2).await;
    let images = [base64(&png(1)), base64(&png(2))];
    let generate = json!({
        "model": "fake-caption:latest", "prompt": "Describe it.", "images": images, "suffix": "",
        "options": {"num_ctx": 9, "temperature": 0.0, "stop": ["\n\n"]}, "keep_alive": "5m",
    });
    let messages = [
        json!({"role": "user", "content": "Image:", "images": images}),
        json!({"role": "user", "content": "Describe it."}),
    ];
    let chat =
        json!({"model": "fake-caption:latest", "messages": messages, "tools": [], "think": false});
    for (path, mut request, place) in
        [("/api/generate", generate, "/response"), ("/api/chat", chat, "/message/content")]
    {
        let streamed = lines(&app, path, &request).await;
        let joined: String =
            streamed.iter().map(|line| line.pointer(place).unwrap().as_str().unwrap()).collect();
        assert_eq!(joined, text, "{path}");
        assert!(streamed.len() > 2);
        request["stream"] = json!(false);
        let answer = app.json(path, &request).await;
        assert!(answer.header("x-blip-note").contains("follow no instructions"));
        let whole = json_of(&answer);
        assert_eq!(whole.pointer(place).unwrap(), &json!(text), "{path}");
        for end in [&whole, streamed.last().unwrap()] {
            assert_eq!((&end["done"], &end["done_reason"]), (&json!(true), &json!("stop")));
            assert_eq!(end["model"], "fake-caption:latest");
            assert!(
                end["total_duration"].as_u64().unwrap() > 0
                    && end["eval_count"].as_u64().unwrap() > 0
            );
        }
        assert!(streamed[..streamed.len() - 1].iter().all(|line| line["done"] == false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vqa_model_answers_and_raw_continues_a_text() {
    let app = TestApp::start();
    let image = base64(&png(3));
    let mut request =
        json!({"model": "vqa", "prompt": "a cat", "images": [image], "stream": false});
    let answer = json_of(&app.json("/api/generate", &request).await);
    assert_eq!(answer["response"], own_answer(&app, 3, "a cat").await);
    assert!(answer["prompt_eval_count"].as_u64().unwrap() > 0);
    request["model"] = json!("caption");
    request["raw"] = json!(true);
    let answer = app.json("/api/generate", &request).await;
    assert!(json_of(&answer)["response"].as_str().unwrap().starts_with("a cat"));
    assert_eq!(answer.header("x-blip-note"), "", "the text was used");
    request["options"] = json!({"num_predict": 2});
    let answer = json_of(&app.json("/api/generate", &request).await);
    assert_eq!((&answer["done_reason"], &answer["eval_count"]), (&json!("length"), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_prompt_and_image_loads_or_unloads() {
    let app = TestApp::start();
    for (path, request, reason) in [
        ("/api/generate", json!({"model": "caption"}), "load"),
        ("/api/generate", json!({"model": "caption", "prompt": "", "keep_alive": 0.0}), "unload"),
        ("/api/chat", json!({"model": "caption", "messages": [], "keep_alive": "0s"}), "unload"),
        ("/api/chat", json!({"model": "caption", "messages": null}), "load"),
    ] {
        let answer = json_of(&app.json(path, &request).await);
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!(reason)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_have_length_one_but_in_the_older_form() {
    let app = TestApp::start();
    let request = json!({"model": "retrieval", "input": ["a cat", "a dog"]});
    let answer = json_of(&app.json("/api/embed", &request).await);
    let own = app.json("/embeddings", &json!({"text": "a cat"})).await.ok();
    assert_eq!(answer["embeddings"][0], own["embedding"]);
    assert_eq!(answer["embeddings"].as_array().unwrap().len(), 2);
    let long = json!({"model": "retrieval", "input": "a ".repeat(2000)});
    json_of(&app.json("/api/embed", &long).await);
    let mut strict = long.clone();
    strict["truncate"] = json!(false);
    error_of(&app.json("/api/embed", &strict).await, 422);
    for empty in [
        json!({"model": "retrieval"}),
        json!({"model": "retrieval", "input": []}),
        json!({"model": "retrieval", "input": ""}),
    ] {
        assert_eq!(json_of(&app.json("/api/embed", &empty).await)["embeddings"], json!([]));
    }
    let older = json_of(
        &app.json("/api/embeddings", &json!({"model": "retrieval", "prompt": "a cat"})).await,
    );
    let raw = app.json("/embeddings", &json!({"text": "a cat", "normalize": false})).await.ok();
    assert_eq!(older["embedding"], raw["embedding"]);
    let empty = json!({"model": "retrieval", "prompt": ""});
    assert_eq!(json_of(&app.json("/api/embeddings", &empty).await)["embedding"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_are_described_as_clients_expect_them() {
    let app = TestApp::start();
    let tags = json_of(&app.get("/api/tags").await);
    let model = &tags["models"][0];
    assert_eq!(
        (&model["name"], &model["model"]),
        (&json!("fake-caption:latest"), &json!("fake-caption:latest"))
    );
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert!(model["modified_at"].as_str().unwrap().ends_with('Z') && model["size"].is_u64());
    assert_eq!(model["capabilities"], json!(["completion", "vision"]));
    assert_eq!(tags["models"][2]["capabilities"], json!(["embedding"]));
    let running = json_of(&app.get("/api/ps").await);
    assert_eq!(running["models"].as_array().unwrap().len(), 4);
    assert!(
        running["models"][0]["expires_at"].is_string()
            && running["models"][0]["size_vram"].is_u64()
    );
    // curl's default content type is one of forms.
    let show = app
        .raw("/api/show", "application/x-www-form-urlencoded", br#"{"name": "fake-vqa"}"#.to_vec())
        .await;
    let show = json_of(&show);
    assert_eq!(show["model_info"]["general.architecture"], "blip");
    assert_eq!(show["details"]["family"], "blip");
    assert_eq!(json_of(&app.get("/api/version").await)["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        json_of(&app.json("/api/pull", &json!({"model": "fake-vqa"})).await)["status"],
        "success"
    );
    let refused = error_of(&app.json("/api/pull", &json!({"model": "llava"})).await, 404);
    assert!(refused.as_str().unwrap().contains("llava"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_text() {
    let app = TestApp::start();
    let image = base64(&png(1));
    for (request, text) in [
        (json!({"prompt": "Describe it."}), "images: an image is needed"),
        (json!({"images": [image], "format": "json"}), "format: BLIP answers in plain text"),
        (json!({"images": ["@"]}), "images: "),
        (json!({"images": [base64(b"x")]}), "the image format is not supported"),
    ] {
        let answer = app.json("/api/generate", &request).await;
        let status = answer.status.as_u16();
        assert!([400, 415].contains(&status), "{status}");
        let error = error_of(&answer, status);
        assert!(error.as_str().unwrap().starts_with(text), "{error}");
    }
    let tools = json!({"model": "caption", "messages": [{"role": "user", "images": [image]}], "tools": [{}]});
    let error = error_of(&app.json("/api/chat", &tools).await, 400);
    assert_eq!(error, "fake-caption does not support tools");
    let error = error_of(
        &app.json("/api/generate", &json!({"model": "llava", "images": [image]})).await,
        404,
    );
    assert!(error.as_str().unwrap().contains("\"llava\" is not loaded"), "{error}");
}
