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
        let photo = image(case["photo"].as_str().unwrap());
        let mut kinds = vec![("image", json!({"model": name, "image": photo}), "image_layers")];
        if case["text"].is_string() {
            let text = &case["text"];
            kinds.push(("text", json!({"model": name, "text": text}), "text_layers"));
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
            if kind == "image" || name == "base" {
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
