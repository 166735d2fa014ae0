//! `explain` on `/caption` and `/vqa` gives the cross-attention weights of transformers, through the whole server.

use serde_json::{Value, json};

use super::reference;
use super::server::{RealServer, image};
use super::tensors::Tensors;

/// The goldens' own tolerance: largest difference over largest magnitude.
const TOLERANCE: f64 = 1e-4;

fn check(what: &str, explanation: &Value, tensors: &Tensors, patches: usize) {
    let (expected, width) = tensors.rows(what);
    assert_eq!(width, patches);
    let side = patches.isqrt();
    assert_eq!(explanation["grid"], json!([side, side]), "{what}: {explanation}");
    let tokens = explanation["tokens"].as_array().unwrap();
    let weights = tokens.iter().flat_map(|token| token["weights"].as_array().unwrap());
    let actual: Vec<f64> = weights.map(|weight| weight.as_f64().unwrap()).collect();
    assert_eq!(actual.len(), expected.len(), "{what}");
    let magnitude = expected.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    for (actual, expected) in actual.iter().zip(&expected) {
        assert!(
            (actual - expected).abs() <= TOLERANCE * magnitude,
            "{what}: {actual} for {expected}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_equal_the_reference() {
    let (cases, tensors) = (reference("explanations"), Tensors::read("explanations"));
    for checkpoint in ["caption-varied", "caption-talkative", "vqa-varied", "vqa-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        let side = server.get("/info").await["models"][0]["image_size"].as_u64().unwrap() as usize;
        let patches = match checkpoint {
            "caption-varied" | "vqa-varied" => side / 16,
            _ => side / 8,
        };
        for case in cases["cases"].as_array().unwrap() {
            if case["checkpoint"] != checkpoint {
                continue;
            }
            let last = case["layers"].as_u64().unwrap() - 1;
            for (kind, layers) in [("all", None), ("last", Some(json!([last])))] {
                let key = format!("{}.{kind}", case["maps"].as_str().unwrap());
                let photo = image(case["photo"].as_str().unwrap());
                let mut request =
                    json!({"image": photo, "explain": true, "explain_layers": layers});
                let explanation = if case["question"].is_string() {
                    request["question"] = case["question"].clone();
                    let answer = server.ask("/vqa", &request).await;
                    answer["answers"][0]["explanation"].clone()
                } else {
                    request["prompt"] = case["prompt"].clone();
                    request["max_new_tokens"] = case["max_new_tokens"].clone();
                    let answer = server.ask("/caption", &request).await;
                    answer["captions"][0]["explanation"].clone()
                };
                check(&key, &explanation, &tensors, patches * patches);
            }
        }
        server.stop().await;
    }
}
