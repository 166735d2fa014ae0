//! The batch forms.

use blip_server::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use serde_json::{Value, json};

use crate::support::answer::assert_problem;
use crate::support::{Multipart, TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn each_input_is_answered_as_it_would_be_alone() {
    let app = TestApp::start();
    let inputs =
        [json!({"image": base64(&png(1))}), json!({"image": base64(&png(2)), "prompt": "a cat"})];
    let batch = app.json("/caption/batch", &json!({"inputs": inputs})).await.ok();
    assert_eq!((&batch["model"], &batch["failed"]), (&json!("fake-caption"), &json!(0)));
    for (input, result) in inputs.iter().zip(batch["results"].as_array().unwrap()) {
        let mut alone = app.json("/caption", input).await.ok();
        alone.as_object_mut().unwrap().remove("model");
        assert_eq!(*result, alone);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_beside_the_inputs_are_defaults_and_an_inputs_own_wins() {
    let app = TestApp::start();
    app.control.set_text_length(30);
    let image = base64(&png(1));
    let request =
        json!({"inputs": [{}, {"max_new_tokens": 3}], "image": image, "max_new_tokens": 5});
    let batch = app.json("/caption/batch", &request).await.ok();
    let counts: Vec<_> = batch["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["captions"][0]["token_count"])
        .collect();
    assert_eq!(counts, [5, 3]);
    // An image shared by all of them is decoded once.
    assert_eq!(app.metrics.image_pixels.get_sample_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_replaces_a_default_given_under_the_other_name() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let request = json!({"inputs": [{"image": image}, {"image": image, "question": "b"}], "questions": ["a", "c"]});
    let batch = app.json("/vqa/batch", &request).await.ok();
    let questions = |index: usize| -> Vec<&Value> {
        batch["results"][index]["answers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| &a["question"])
            .collect()
    };
    assert_eq!(questions(0), ["a", "c"]);
    assert_eq!(questions(1), ["b"]);
    let request = json!({"inputs": [{"image": image}, {"images": [image, image]}], "text": "a"});
    let batch = app.json("/similarity/batch", &request).await.ok();
    assert_eq!(batch["results"][1]["scores"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_inputs_content_stays_with_the_input() {
    let app = TestApp::start();
    let mut broken = png(1);
    broken.truncate(40);
    let unknown = format!("sha256:{}", "0".repeat(64));
    app.control.fault(FakeCall::Encode, FakeMark::Image(66), FakeFault::Error);
    let request = json!({"inputs": [
        {"image": base64(&png(1))},
        {"image": base64(&broken)},
        {"image": base64(b"%PDF-1.7 and more of it")},
        {"image": unknown},
        {"image": base64(&png(1)), "prompt": "a ".repeat(600)},
        {"image": "https://example.org/cat.jpg"},
        {"image": base64(&png(66))},
    ]});
    let batch = app.json("/caption/batch", &request).await.ok();
    assert_eq!(batch["failed"], 6);
    let results = batch["results"].as_array().unwrap();
    assert!(results[0].get("captions").is_some());
    let expected = [
        (422, "undecodable_image", "inputs[1].image"),
        (415, "unsupported_image_format", "inputs[2].image"),
        (404, "image_not_found", "inputs[3].image"),
        (422, "text_too_long", "inputs[4].prompt"),
        (422, "fetch_disabled", "inputs[5].image"),
        (500, "inference_failed", ""),
    ];
    for (result, (status, code, field)) in results[1..].iter().zip(expected) {
        assert_problem(&result["error"], status, code);
        let found = result["error"]["errors"][0]["field"].as_str().unwrap_or_default();
        assert_eq!(found, field, "{result}");
    }
    let count = |code: &str| {
        app.metrics.items_total.with_label_values(&["caption", "fake-caption", code]).get()
    };
    assert_eq!((count("ok"), count("undecodable_image"), count("text_too_long")), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_body_refuses_the_whole_call_and_decodes_nothing() {
    let app = TestApp::start();
    let good = json!({"image": base64(&png(1))});
    let cases = [
        (
            json!({"inputs": [good, {"image": base64(&png(1)), "num_beams": 9}]}),
            "inputs[1].num_beams",
        ),
        (
            json!({"inputs": [good, {"image": base64(&png(1)), "temperature": 0.5}]}),
            "inputs[1].temperature",
        ),
        (json!({"inputs": [good, {}]}), "inputs[1].image"),
        (json!({"inputs": [good, {"image": "no base64!"}]}), "inputs[1].image"),
        (json!({"inputs": [good, {"image": base64(&png(1)), "model": "x"}]}), "inputs[1].model"),
        (json!({"inputs": [good], "stream": true}), "stream"),
        (json!({"inputs": good}), "inputs"),
        (json!({}), "inputs"),
        (json!({"inputs": []}), "inputs"),
    ];
    for (request, field) in cases {
        let answer = app.json("/caption/batch", &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
    assert_eq!(app.metrics.image_pixels.get_sample_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_several_inputs_are_reported_together() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let request = json!({"inputs": [{"image": image, "seed": 1}, {"image": image}, {"image": image, "top_k": 3}]});
    let problem = app.json("/caption/batch", &request).await.refused(400, "invalid_request");
    let fields: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|e| &e["field"]).collect();
    assert_eq!(fields, ["inputs[0].seed", "inputs[2].top_k"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_inputs_or_rows_are_a_422_that_names_the_limit() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let many = json!({"inputs": vec![json!({}); 65], "image": image});
    let problem = app.json("/caption/batch", &many).await.refused(422, "batch_too_large");
    assert!(problem["detail"].as_str().unwrap().contains("limits.max_batch_inputs"));
    let wide = json!({"inputs": vec![json!({}); 33], "image": image, "num_beams": 8});
    let problem = app.json("/caption/batch", &wide).await.refused(422, "batch_too_large");
    assert!(problem["detail"].as_str().unwrap().contains("limits.max_rows"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_of_a_form_is_one_input() {
    let app = TestApp::start();
    let parts =
        Multipart::default().file("image", &png(1)).text("prompt", "a cat").file("image", &png(2));
    let form = app.multipart("/caption/batch", parts).await.ok();
    let inputs = json!([{"image": base64(&png(1))}, {"image": base64(&png(2))}]);
    let body = json!({"inputs": inputs, "prompt": "a cat"});
    assert_eq!(app.json("/caption/batch", &body).await.ok(), form);

    let mut broken = png(1);
    broken.truncate(40);
    let parts =
        Multipart::default().file("image", &png(1)).file("image", &broken).text("text", "a");
    let form = app.multipart("/similarity/batch", parts).await.ok();
    assert_eq!(form["failed"], 1);
    assert_eq!(form["results"][1]["error"]["errors"][0]["field"], "inputs[1].image");
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_of_texts_and_images_mix_in_one_call() {
    let app = TestApp::start();
    let request =
        json!({"inputs": [{"text": "a"}, {"image": base64(&png(1))}], "encoding_format": "base64"});
    let batch = app.json("/embeddings/batch", &request).await.ok();
    let kinds: Vec<_> = batch["results"].as_array().unwrap().iter().map(|r| &r["type"]).collect();
    assert_eq!(kinds, ["text", "image"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_stays_with_the_inputs_that_miss_it() {
    let app = TestApp::start();
    app.control.hold();
    let request = json!({"inputs": [{"text": "a"}, {"text": "b"}]});
    let mut http = crate::support::app::json_request("/embeddings/batch", &request);
    http.headers_mut().insert("x-request-timeout-ms", "200".parse().unwrap());
    let batch = app.send(http).await.ok();
    assert_eq!(batch["failed"], 2);
    assert_problem(&batch["results"][0]["error"], 504, "deadline_exceeded");
}
