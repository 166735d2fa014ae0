//! Hidden states and pooled outputs on `/embeddings` equal those of transformers, for models of every class.

use serde_json::{Value, json};

use super::reference;
use super::server::{RealServer, image};
use super::tensors::Tensors;

/// The goldens' own tolerance: largest difference over largest magnitude.
const TOLERANCE: f64 = 1e-4;

fn check(what: &str, answer: &Value, expected: &[f64]) {
    let values = answer["embedding"].as_array().unwrap_or_else(|| panic!("{what}: {answer}"));
    assert_eq!(values.len(), expected.len(), "{what}");
    let magnitude = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for (value, expected) in values.iter().zip(expected) {
        let error = (value.as_f64().unwrap() - expected).abs();
        assert!(error <= TOLERANCE * magnitude, "{what}: {value} for {expected}");
    }
}

/// Checks every pooling of one state of one input: `name` is the tensor, `layer` the number in the request.
async fn check_state(server: &RealServer, request: &Value, name: &str, layer: Option<u64>) {
    let (states, width) = Tensors::read("states").rows(name);
    let tokens = states.len() / width;
    let mean: Vec<f64> = (0..width)
        .map(|column| states.iter().skip(column).step_by(width).sum::<f64>() / tokens as f64)
        .collect();
    for (pooling, expected) in [("none", &states[..]), ("cls", &states[..width]), ("mean", &mean)] {
        let mut request = request.clone();
        request["pooling"] = json!(pooling);
        if let Some(layer) = layer {
            request["layer"] = json!(layer);
        }
        let answer = server.ask("/embeddings", &request).await;
        check(&format!("{name} {pooling}"), &answer, expected);
        assert_eq!(answer["dimensions"], width);
        let shape = (pooling == "none").then(|| json!([tokens, width]));
        assert_eq!(answer.get("shape"), shape.as_ref());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_states_of_every_class_equal_the_reference() {
    let cases = reference("states");
    let cases = cases["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case["checkpoint"].as_str().unwrap()).collect();
    let server = RealServer::start(&names, &[]).await;
    for case in cases {
        let name = case["checkpoint"].as_str().unwrap();
        let (photo, text) = (case["photo"].as_str().map(image), case["text"].as_str());
        let mut kinds = Vec::new();
        if let Some(photo) = &photo {
            kinds.push(("image", json!({"model": name, "image": photo}), "image_layers"));
        }
        if let Some(text) = text {
            kinds.push(("text", json!({"model": name, "text": text}), "text_layers"));
        }
        if let (Some(photo), Some(text)) = (&photo, text) {
            let both = json!({"model": name, "image": photo, "text": text, "type": "multimodal"});
            kinds.push(("multimodal", both, "text_layers"));
        }
        for (kind, request, layers) in kinds {
            check_state(&server, &request, &format!("{name}.{kind}.last"), None).await;
            for layer in 0..=case[layers].as_u64().unwrap() {
                let tensor = format!("{name}.{kind}.{layer}");
                check_state(&server, &request, &tensor, Some(layer)).await;
            }
            let pooled = format!("{name}.{kind}.pooler");
            let mut request = request;
            request["pooling"] = json!("pooler");
            if kind == "image" || ["base", "text"].contains(&name) {
                let answer = server.ask("/embeddings", &request).await;
                check(&pooled, &answer, &Tensors::read("states").rows(&pooled).0);
            } else {
                let refused = server.post("/embeddings", &request).await;
                assert_eq!(refused.status(), 422, "{pooled}");
            }
        }
    }
    server.stop().await;
}

/// Status, code and field of a request that is refused.
async fn refusal(server: &RealServer, path: &str, request: Value) -> (u16, String, String) {
    let response = server.post(path, &request).await;
    let status = response.status().as_u16();
    let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (status, text(&problem["code"]), text(&problem["errors"][0]["field"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn single_towers_serve_embeddings_alone() {
    let server = RealServer::start(&["vision", "text", "retrieval"], &[]).await;
    let photo = image("coffee");
    let not_available = |field: &str| (422, "score_not_available".to_owned(), field.to_owned());
    for (request, field) in [
        (json!({"model": "vision", "text": "a cup"}), "text"),
        (json!({"model": "vision", "image": photo}), "pooling"),
        (json!({"model": "text", "image": photo}), "image"),
        (json!({"model": "text", "text": "a cup"}), "pooling"),
        (json!({"model": "text", "image": photo, "text": "a", "type": "multimodal"}), "image"),
        (json!({"model": "vision", "image": photo, "text": "a", "type": "multimodal"}), "text"),
        (json!({"model": "text", "text": "a", "pooling": "cls", "layer": 3}), "layer"),
    ] {
        let refused = refusal(&server, "/embeddings", request.clone()).await;
        assert_eq!(refused, not_available(field), "{request}");
    }
    let pair = json!({"image": photo, "text": "a cup"});
    assert_eq!(server.ask("/similarity", &pair).await["model"], "retrieval");
    let mut named = pair.clone();
    named["model"] = json!("vision");
    let refused = refusal(&server, "/similarity", named).await;
    assert_eq!(refused, (404, "model_not_found".to_owned(), "model".to_owned()));
    assert_eq!(server.ask("/embeddings", &json!({"text": "a cup"})).await["model"], "retrieval");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_other_models_the_first_single_tower_is_the_default() {
    let server =
        RealServer::start(&["tensorflow/vision", "tensorflow/text", "caption-varied"], &[]).await;
    let request = json!({"image": image("coffee"), "pooling": "pooler"});
    assert_eq!(server.ask("/embeddings", &request).await["model"], "tensorflow/vision");
    let text = json!({"model": "tensorflow/text", "text": "the first man", "pooling": "pooler"});
    assert_eq!(server.ask("/embeddings", &text).await["type"], "text");
    let pair = json!({"image": image("coffee"), "text": "a cup"});
    let refused = refusal(&server, "/similarity", pair).await;
    assert_eq!((refused.0, refused.1.as_str()), (404, "task_not_loaded"));
    server.stop().await;
}
