//! `/hf/...`

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::{error_of, json_of, own_answer, own_caption};
use crate::support::app::json_request;
use crate::support::{TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_raw_or_in_json_and_goes_back_as_the_client_expects() {
    let app = TestApp::start();
    let text = own_caption(&app, 1).await;
    let list = json!([{"generated_text": text}]);
    for content_type in
        ["", "image/png", "application/octet-stream", "application/x-www-form-urlencoded"]
    {
        let answer = app.raw("/hf/image-to-text?model=caption", content_type, png(1)).await;
        assert_eq!(json_of(&answer), list, "{content_type}");
    }
    let request = json!({"inputs": base64(&png(1)), "parameters": {}});
    assert_eq!(json_of(&app.json("/hf/image-to-text", &request).await), list);
    let node = Request::post("/hf/image-to-text").header("sec-fetch-mode", "cors");
    let answer = app.send(node.body(Body::from(png(1))).unwrap()).await;
    assert_eq!(json_of(&answer), json!({"generated_text": text}));
    let short = json!({"inputs": base64(&png(1)), "parameters": {"max_new_tokens": 2}});
    let short = json_of(&app.json("/hf/image-to-text", &short).await);
    assert_ne!(short, list);
    let beams = json!({"inputs": base64(&png(1)), "parameters": {"generation_parameters": {"num_beams": 3}}});
    let own = app.json("/caption", &json!({"image": base64(&png(1)), "num_beams": 3})).await.ok();
    let beams = json_of(&app.json("/hf/image-to-text", &beams).await);
    assert_eq!(beams[0]["generated_text"], own["captions"][0]["text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_clamped_and_a_temperature_samples() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let hf = async |parameters: Value| {
        let request = json!({"inputs": image, "parameters": parameters});
        json_of(&app.json("/hf/image-to-text", &request).await)[0]["generated_text"].clone()
    };
    let own = async |fields: Value| {
        let mut request = json!({"image": image});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        app.json("/caption", &request).await.ok()["captions"][0]["text"].clone()
    };
    for (parameters, same) in [
        (json!({"max_new_tokens": 128}), json!({"max_new_tokens": 64})),
        (json!({"max_new_tokens": -1}), json!({"max_new_tokens": 64})),
        (json!({"max_new_tokens": 1_000_000.0}), json!({"max_new_tokens": 64})),
        (json!({"generation_parameters": {"min_new_tokens": 500}}), json!({"min_new_tokens": 20})),
        (json!({"generation_parameters": {"num_beams": 100}}), json!({"num_beams": 8})),
        (json!({"generation_parameters": {"num_beams": 0, "temperature": 0}}), json!({})),
        (
            json!({"generation_parameters": {"top_k": 5, "top_p": 0.5, "length_penalty": 2}}),
            json!({}),
        ),
        (json!({"generation_parameters": {"do_sample": false, "temperature": 0.7}}), json!({})),
        (
            json!({"generation_parameters": {"num_beams": 2, "temperature": 0.7, "length_penalty": 99}}),
            json!({"num_beams": 2, "length_penalty": 10}),
        ),
        (
            json!({"generation_parameters": {"repetition_penalty": 500, "no_repeat_ngram_size": 99}}),
            json!({"repetition_penalty": 100, "no_repeat_ngram_size": 64}),
        ),
        // With one token to choose from, sampling is greedy.
        (
            json!({"generation_parameters": {"temperature": 0.7, "top_k": 1}}),
            json!({"do_sample": true, "top_k": 1}),
        ),
    ] {
        assert_eq!(hf(parameters.clone()).await, own(same).await, "{parameters}");
    }
    let sampled = json!({"inputs": image, "parameters": {"generation_parameters": {"do_sample": true, "num_beams": 2}}});
    let error = error_of(&app.json("/hf/image-to-text", &sampled).await, 400);
    assert!(error.as_str().unwrap().contains("sampling with beams is not supported"), "{error}");
    let penalty = json!({"inputs": image, "parameters": {"generation_parameters": {"repetition_penalty": 0}}});
    let error = error_of(&app.json("/hf/image-to-text", &penalty).await, 400);
    assert!(error.as_str().unwrap().contains("repetition_penalty: must be above 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_comes_in_both_shapes() {
    let app = TestApp::start();
    let (image, question) = (base64(&png(2)), "a cat");
    let expected = own_answer(&app, 2, question).await;
    for request in [
        json!({"inputs": {"image": image, "question": question}, "parameters": {"top_k": 2}}),
        json!({"inputs": image, "parameters": {}, "question": question, "image": image}),
    ] {
        let answers = json_of(&app.json("/hf/visual-question-answering", &request).await);
        assert_eq!(answers[0]["answer"], expected);
        let score = answers[0]["score"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&score), "{score}");
    }
    let error =
        error_of(&app.json("/hf/visual-question-answering", &json!({"inputs": image})).await, 400);
    assert_eq!(error, "question: is needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_those_of_classify() {
    let app = TestApp::start();
    let image = base64(&png(3));
    let own =
        json!({"image": image, "labels": ["a cat", "a dog"], "template": "This is a photo of {}."});
    let own = app.json("/classify", &own).await.ok();
    for inputs in [json!(image), json!({"image": image})] {
        let request =
            json!({"inputs": inputs, "parameters": {"candidate_labels": ["a cat", "a dog"]}});
        let labels = json_of(&app.json("/hf/zero-shot-image-classification", &request).await);
        for place in 0..2 {
            assert_eq!(labels[place]["label"], own["labels"][place]["label"]);
            assert_eq!(labels[place]["score"], own["labels"][place]["probability"]);
        }
    }
    let request = json!({"inputs": image, "parameters": {"candidate_labels": ["a", "a"]}});
    let error = error_of(&app.json("/hf/zero-shot-image-classification", &request).await, 400);
    assert!(error.as_str().unwrap().starts_with("parameters.candidate_labels[1]: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_gives_a_vector_and_a_list_gives_vectors() {
    let app = TestApp::start();
    let own = app.json("/embeddings", &json!({"text": "a cat"})).await.ok()["embedding"].clone();
    let features = |inputs| {
        let app = &app;
        async move { json_of(&app.json("/hf/feature-extraction", &json!({"inputs": inputs})).await) }
    };
    assert_eq!(features(json!("a cat")).await, own);
    assert_eq!(features(json!(["a cat"])).await, json!([own]));
    let image = features(json!({"image": base64(&png(1))})).await;
    assert_eq!(image.as_array().unwrap().len(), own.as_array().unwrap().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_cannot_answer_says_429_because_clients_repeat_a_503_at_once() {
    let app = TestApp::with(|config| config.engine.capacity_rows = 1);
    app.control.hold();
    let holder = json_request("/caption", &json!({"image": base64(&png(1))}));
    let router = app.router.clone();
    let holding = tokio::spawn(async move { tower::ServiceExt::oneshot(router, holder).await });
    app.control.wait_until_held();
    let answer = app.raw("/hf/image-to-text", "", png(2)).await;
    assert!(!answer.header("retry-after").is_empty());
    error_of(&answer, 429);
    let own = app.json("/caption", &json!({"image": base64(&png(2))})).await;
    own.refused(503, "overloaded");
    app.control.release();
    assert_eq!(holding.await.unwrap().unwrap().status(), 200);
}
