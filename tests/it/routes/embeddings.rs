//! `/embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blip_server::engine::testing::fake::{FakeCall, FakeFault, FakeMark};
use serde_json::{Value, json};

use crate::support::{TestApp, base64, png};

fn values(answer: &Value) -> Vec<f64> {
    answer["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_images_become_vectors_of_length_one() {
    let app = TestApp::start();
    let text = app.json("/embeddings", &json!({"text": "two cats"})).await.ok();
    assert_eq!((&text["model"], &text["type"]), (&json!("fake-retrieval"), &json!("text")));
    assert_eq!(text["dimensions"], 4);
    assert!((norm(&values(&text)) - 1.0).abs() < 1e-6);
    assert!(text.get("image").is_none());
    let image = app.json("/embeddings", &json!({"image": base64(&png(1))})).await.ok();
    assert_eq!(image["type"], "image");
    assert_eq!(image["image"]["format"], "png");
    // The same space: their dot product is the cosine of /similarity.
    let request = json!({"image": base64(&png(1)), "text": "two cats", "scores": ["cosine"]});
    let cosine =
        app.json("/similarity", &request).await.ok()["scores"][0][0]["cosine"].as_f64().unwrap();
    let dot: f64 = values(&text).iter().zip(values(&image)).map(|(a, b)| a * b).sum();
    assert!((dot - cosine).abs() < 1e-6, "{dot} {cosine}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_its_image_has_a_space_of_its_own() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "text": "two cats", "type": "multimodal"});
    let answer = app.json("/embeddings", &request).await.ok();
    assert_eq!(answer["type"], "multimodal");
    assert!(answer.get("image").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_holds_the_same_numbers_as_the_list() {
    let app = TestApp::start();
    let list = app.json("/embeddings", &json!({"text": "a", "normalize": false})).await.ok();
    let request = json!({"text": "a", "normalize": false, "encoding_format": "base64"});
    let packed = app.json("/embeddings", &request).await.ok();
    let bytes = STANDARD.decode(packed["embedding"].as_str().unwrap()).unwrap();
    let unpacked: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let expected: Vec<f32> = values(&list).into_iter().map(|value| value as f32).collect();
    assert_eq!(unpacked, expected);
    assert!(norm(&values(&list)) > 1.5, "not normalised");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_text_is_refused_or_cut_as_asked() {
    let app = TestApp::start();
    let text = "a ".repeat(600);
    let answer = app.json("/embeddings", &json!({"text": text})).await;
    assert_eq!(answer.refused_field(422, "text_too_long"), "text");
    let cut = app.json("/embeddings", &json!({"text": text, "truncate": true})).await.ok();
    let same = app.json("/embeddings", &json!({"text": "a ".repeat(510)})).await.ok();
    assert_eq!(cut["embedding"], same["embedding"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_combination_is_a_400_at_its_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        (json!({}), "image"),
        (json!({"image": image, "text": "a"}), "type"),
        (json!({"image": image, "text": "a", "type": "image"}), "text"),
        (json!({"text": "a", "type": "multimodal"}), "image"),
        (json!({"text": "a", "type": "audio"}), "type"),
        (json!({"text": "a", "encoding_format": "hex"}), "encoding_format"),
        (json!({"image": image, "truncate": true}), "truncate"),
        (json!({"text": "a", "normalize": "yes"}), "normalize"),
    ];
    for (request, field) in cases {
        let answer = app.json("/embeddings", &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_are_none_are_a_500_and_never_sent() {
    let app = TestApp::start();
    app.control.fault(FakeCall::SinglePass, FakeMark::Image(9), FakeFault::NonFinite);
    let answer = app.json("/embeddings", &json!({"image": base64(&png(9))})).await;
    answer.refused(500, "inference_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_every_class_return_hidden_states() {
    let app = TestApp::start();
    let image = base64(&png(1));
    for model in ["fake-caption", "fake-vqa", "fake-retrieval", "fake-clip"] {
        let (app, image) = (&app, &image);
        let ask = async |pooling: &str, layer: serde_json::Value| {
            let request =
                json!({"model": model, "image": image, "pooling": pooling, "layer": layer});
            app.json("/embeddings", &request).await
        };
        let all = ask("none", json!(null)).await.ok();
        assert_eq!(
            (&all["model"], &all["shape"], &all["dimensions"]),
            (&json!(model), &json!([5, 4]), &json!(4))
        );
        assert_eq!(all["embedding"].as_array().unwrap().len(), 20);
        let [last, first] = [json!(null), json!(0)].map(|layer| ask("cls", layer));
        let (last, first) = (last.await.ok(), first.await.ok());
        assert_ne!(last["embedding"], first["embedding"]);
        assert!(last.get("shape").is_none());
    }
    let request =
        json!({"model": "fake-vqa", "text": "he was", "pooling": "none", "normalize": true});
    let answer = app.json("/embeddings", &request).await.ok();
    let values: Vec<f64> = answer["embedding"]
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap())
        .collect();
    assert_eq!(values.len() as u64, 4 * answer["shape"][0].as_u64().unwrap());
    for token in values.chunks(4) {
        let norm: f64 = token.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5, "each token is normalised: {norm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_a_model_does_not_have_are_refused_at_their_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        (json!({"model": "fake-caption", "image": image}), 422, "score_not_available", "pooling"),
        (
            json!({"model": "fake-caption", "text": "a", "pooling": "cls"}),
            422,
            "score_not_available",
            "text",
        ),
        (
            json!({"model": "fake-vqa", "text": "a", "pooling": "pooler"}),
            422,
            "score_not_available",
            "pooling",
        ),
        (
            json!({"image": image, "pooling": "cls", "layer": 3}),
            422,
            "score_not_available",
            "layer",
        ),
        (json!({"text": "a", "pooling": "cls", "layer": 4}), 422, "score_not_available", "layer"),
        (json!({"image": image, "layer": 1}), 400, "invalid_request", "layer"),
        (json!({"image": image, "pooling": "pooler", "layer": 1}), 400, "invalid_request", "layer"),
        (json!({"image": image, "pooling": "max"}), 400, "invalid_request", "pooling"),
    ];
    for (request, status, code, field) in cases {
        let answer = app.json("/embeddings", &request).await;
        assert_eq!(answer.refused_field(status, code), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_at_most_as_many_numbers_as_the_limit() {
    let app = TestApp::with(|config| config.http.limits.max_embedding_values = 40);
    let image = base64(&png(1));
    let input = json!({"image": image});
    let two = json!({"inputs": [input, input], "pooling": "none"});
    assert_eq!(app.json("/embeddings/batch", &two).await.ok()["failed"], 0);
    let three = json!({"inputs": [input, input, input], "pooling": "none"});
    let problem = app.json("/embeddings/batch", &three).await.refused(422, "batch_too_large");
    assert!(
        problem["detail"].as_str().unwrap().contains("limits.max_embedding_values"),
        "{problem}"
    );
    // An explanation has a weight for each token that may be generated and each patch.
    let explained = json!({"image": image, "explain": true, "max_new_tokens": 9});
    let answer = app.json("/caption", &explained).await;
    answer.refused(422, "batch_too_large");
    let explained = json!({"image": image, "explain": true, "max_new_tokens": 8});
    app.json("/caption", &explained).await.ok();
}
