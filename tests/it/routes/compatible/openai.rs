//! `/v1/...`

use serde_json::{Value, json};

use super::{error_of, json_of, own_answer, own_caption};
use crate::support::{TestApp, base64, png};

fn image_part(mark: u8) -> Value {
    json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", base64(&png(mark)))}})
}

fn text_part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn user(parts: &[Value]) -> Value {
    json!({"role": "user", "content": parts})
}

async fn chat(app: &TestApp, request: &Value) -> Value {
    json_of(&app.json("/v1/chat/completions", request).await)
}

/// The chunks of a stream, without the end mark.
async fn chunks(app: &TestApp, request: &Value) -> Vec<Value> {
    let answer = app.json("/v1/chat/completions", request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let events: Vec<&str> =
        answer.text().lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn joined(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caption_model_describes_the_last_image_and_says_that_it_ignored_the_text() {
    let app = TestApp::start();
    let messages = [
        user(&[text_part("first"), image_part(1)]),
        user(&[image_part(2)]),
        user(&[text_part("Write a poem.")]),
    ];
    let request = json!({"model": "fake-caption", "messages": messages, "unknown": {"x": 1}});
    let answer = app.json("/v1/chat/completions", &request).await;
    assert!(answer.header("x-blip-note").contains("follow no instructions"));
    let completion = json_of(&answer);
    assert_eq!(completion["choices"][0]["message"]["content"], own_caption(&app, 2).await);
    assert_eq!(completion["choices"][0]["message"]["refusal"], Value::Null);
    assert_eq!(completion["choices"][0]["finish_reason"], "stop");
    assert_eq!(completion["model"], "fake-caption");
    let id = completion["id"].as_str().unwrap();
    assert_eq!(id, format!("chatcmpl-{}", answer.header("x-request-id")));
    let usage = &completion["usage"];
    assert_eq!(usage["prompt_tokens"], 0);
    assert_eq!(usage["total_tokens"], usage["completion_tokens"]);
    let silent = json!({"model": "caption", "messages": [user(&[image_part(2)])]});
    assert_eq!(app.json("/v1/chat/completions", &silent).await.header("x-blip-note"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vqa_model_answers_the_last_text_of_the_user() {
    let app = TestApp::start();
    let messages = [
        json!({"role": "system", "content": "Be brief."}),
        user(&[image_part(3), text_part("a cat")]),
        json!({"role": "assistant", "content": "yes"}),
        json!({"role": "user", "content": "a dog"}),
        json!({"role": "assistant", "content": null}),
    ];
    let completion = chat(&app, &json!({"model": "fake-vqa:latest", "messages": messages})).await;
    let expected = own_answer(&app, 3, "a dog").await;
    assert_eq!(completion["choices"][0]["message"]["content"], expected);
    assert!(completion["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
    let without = json!({"model": "vqa", "messages": [user(&[image_part(3)])]});
    let error = error_of(&app.json("/v1/chat/completions", &without).await, 400);
    assert_eq!((&error["param"], &error["code"]), (&json!("messages"), &json!("invalid_request")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_joined_is_the_text_and_usage_comes_only_if_it_is_asked_for() {
    let app = TestApp::start();
    for (model, text) in [("caption", "x"), ("vqa", "a cat")] {
        let mut request =
            json!({"model": model, "messages": [user(&[image_part(4), text_part(text)])]});
        let whole = chat(&app, &request).await;
        let content = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        request["stream"] = json!(true);
        let plain = chunks(&app, &request).await;
        assert_eq!(joined(&plain, 0), content);
        assert_eq!(plain[0]["choices"][0]["delta"]["role"], "assistant");
        let last = plain.last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
        request["stream_options"] = json!({"include_usage": true});
        let counted = chunks(&app, &request).await;
        let (usage, rest) = counted.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"], whole["usage"]);
        assert!(rest.iter().all(|chunk| chunk["usage"].is_null()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_clamped_and_a_stop_string_is_left_out() {
    let app = TestApp::start();
    let request = |options: Value| {
        let mut request = json!({"model": "caption", "messages": [user(&[image_part(5)])]});
        request.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        request
    };
    let text = own_caption(&app, 5).await;
    let content = |completion: &Value, index: usize| {
        completion["choices"][index]["message"]["content"].as_str().unwrap().to_owned()
    };
    let many = chat(&app, &request(json!({"max_tokens": 100_000, "top_p": 0, "seed": -1}))).await;
    assert_eq!(content(&many, 0), text);
    let short = chat(&app, &request(json!({"max_tokens": 9, "max_completion_tokens": 2}))).await;
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    assert_eq!(short["usage"]["completion_tokens"], 2);
    let twice = chat(&app, &request(json!({"n": 2, "temperature": 0}))).await;
    assert_eq!((content(&twice, 0), content(&twice, 1)), (text.clone(), text.clone()));
    let sampled = request(json!({"n": 2, "temperature": 5, "seed": 7}));
    let [first, second] = [chat(&app, &sampled).await, chat(&app, &sampled).await];
    assert_eq!(first["choices"], second["choices"]);
    let mut streamed = sampled.clone();
    streamed["stream"] = json!(true);
    let streamed = chunks(&app, &streamed).await;
    assert_eq!(joined(&streamed, 1), content(&first, 1));

    let word = text.split(' ').nth(1).unwrap();
    let end = text.find(word).unwrap();
    let mut stop = request(json!({"stop": ["", word]}));
    let stopped = chat(&app, &stop).await;
    assert_eq!(content(&stopped, 0), text[..end]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    stop["stream"] = json!(true);
    assert_eq!(joined(&chunks(&app, &stop).await, 0), text[..end]);
    let logprobs = chat(&app, &request(json!({"logprobs": true}))).await;
    let tokens = logprobs["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs["usage"]["completion_tokens"], tokens.len());
    let prompted = chat(&app, &request(json!({"prompt": "a cat"}))).await;
    assert!(content(&prompted, 0).starts_with("a cat"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_blip_cannot_do_is_refused_in_the_shape_of_the_api() {
    let app = TestApp::start();
    let messages = json!([user(&[image_part(1)])]);
    let cases = [
        (json!({"messages": []}), "messages[].content[].image_url.url"),
        (
            json!({"messages": messages, "response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"messages": messages, "tool_choice": "required"}), "tool_choice"),
        (json!({"messages": messages, "n": 9}), "n"),
        (json!({"messages": messages, "stop": vec!["a"; 17]}), "stop"),
        (
            json!({"messages": [user(&[json!({"type": "input_audio"})])]}),
            "messages[].content[].type",
        ),
        (json!({"messages": messages, "stop": "cat", "prompt": "a cat"}), "stop"),
        (
            json!({"messages": [user(&[json!({"type": "image_url", "image_url": {"url": "@"}})])]}),
            "messages[].content[].image_url.url",
        ),
        (json!({"model": "caption"}), "messages"),
        (json!({"messages": 5}), "messages"),
    ];
    for (request, field) in cases {
        let error = error_of(&app.json("/v1/chat/completions", &request).await, 400);
        assert_eq!(error["param"], field, "{request}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().starts_with(field), "{error}");
    }
    let unknown = json!({"model": "gpt-9", "messages": messages});
    let error = error_of(&app.json("/v1/chat/completions", &unknown).await, 404);
    assert_eq!(error["code"], "model_not_found");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("gpt-9") && message.contains("fake-vqa"), "{message}");
    let wrong_role = json!({"model": "fake-retrieval", "messages": messages});
    let error = error_of(&app.json("/v1/chat/completions", &wrong_role).await, 404);
    assert!(error["message"].as_str().unwrap().contains("does not serve this route"), "{error}");
    let error = error_of(&app.get("/v1/nothing").await, 404);
    assert_eq!(error["code"], "route_not_found");
    let error = error_of(&app.get("/v1/embeddings").await, 405);
    assert_eq!(error["code"], "method_not_allowed");
    let error = error_of(&app.json_text("/v1/chat/completions", "{").await, 400);
    assert_eq!(error["param"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_and_found_by_every_name() {
    let app = TestApp::start();
    let list = json_of(&app.get("/v1/models").await);
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["fake-caption", "fake-vqa", "fake-retrieval", "fake-clip"]);
    for (name, id) in [
        ("fake-clip", "fake-clip"),
        ("fake-vqa:latest", "fake-vqa"),
        ("blip-server", "fake-caption"),
        ("vqa", "fake-vqa"),
        ("embeddings", "fake-retrieval"),
    ] {
        assert_eq!(json_of(&app.get(&format!("/v1/models/{name}")).await)["id"], id);
    }
    for path in ["/v1/models/a/b", "/v1/models/a%2Fb"] {
        let error = error_of(&app.get(path).await, 404);
        assert!(error["message"].as_str().unwrap().contains("\"a/b\" is not loaded"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_those_of_the_own_route_in_any_number() {
    let app = TestApp::with(|config| config.http.limits.max_batch_inputs = 3);
    let own = |input: Value| {
        let app = &app;
        async move { app.json("/embeddings", &input).await.ok()["embedding"].clone() }
    };
    let image = base64(&png(9));
    let inputs =
        json!(["a cat", {"image": image}, "a dog", "a cat", {"text": "a dog"}, "a", "the"]);
    let request = json!({"model": "retrieval", "input": inputs});
    let list = json_of(&app.json("/v1/embeddings", &request).await);
    let data = list["data"].as_array().unwrap();
    assert_eq!(data.len(), 7);
    assert!((0..7).all(|index| data[index]["index"] == index));
    assert_eq!(data[0]["embedding"], own(json!({"text": "a cat"})).await);
    assert_eq!(data[1]["embedding"], own(json!({"image": image})).await);
    assert_eq!(data[6]["embedding"], own(json!({"text": "the"})).await);
    assert_eq!(data[3]["embedding"], data[0]["embedding"]);
    assert!(list["usage"]["prompt_tokens"].as_u64().unwrap() >= 6 * 3);
    let one = json!({"input": "a cat", "encoding_format": "base64", "dimensions": data[0]["embedding"].as_array().unwrap().len()});
    for images in [
        json!({"input": format!("data:image/png;base64,{image}")}),
        json!({"input": [image], "modality": "image"}),
    ] {
        let answer = json_of(&app.json("/v1/embeddings", &images).await);
        assert_eq!(answer["data"][0]["embedding"], data[1]["embedding"]);
    }
    let audio = json!({"input": "a", "modality": "audio"});
    assert_eq!(error_of(&app.json("/v1/embeddings", &audio).await, 400)["param"], "modality");
    let packed = json_of(&app.json("/v1/embeddings", &one).await);
    let own_packed = own(json!({"text": "a cat", "encoding_format": "base64"})).await;
    assert_eq!(packed["data"][0]["embedding"], own_packed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_an_input_names_it_by_its_place_in_the_list() {
    let app = TestApp::with(|config| config.http.limits.max_batch_inputs = 2);
    let long = "a ".repeat(5000);
    let request = json!({"input": ["a", "a", "a", long]});
    let error = error_of(&app.json("/v1/embeddings", &request).await, 400);
    assert_eq!((&error["param"], &error["code"]), (&json!("input[3]"), &json!("text_too_long")));
    let image = json!({"image": base64(b"no image")});
    let error = error_of(&app.json("/v1/embeddings", &json!({"input": ["a", image]})).await, 415);
    assert_eq!(error["param"], "input[1]");
    for (input, text) in [
        (json!([1, 2]), "check_embedding_ctx_length"),
        (json!([[1], [2]]), "check_embedding_ctx_length"),
        (json!([]), "at least one"),
        (json!(""), "at least one"),
        (json!(["a", ""]), "non-empty"),
        (json!(vec!["a"; 2049]), "2048"),
        (json!([{}]), "image or text"),
    ] {
        let error = error_of(&app.json("/v1/embeddings", &json!({"input": input})).await, 400);
        assert!(error["message"].as_str().unwrap().contains(text), "{text}: {error}");
    }
    let wrong = json!({"input": "a", "dimensions": 7});
    let error = error_of(&app.json("/v1/embeddings", &wrong).await, 400);
    assert_eq!(error["param"], "dimensions");
}
