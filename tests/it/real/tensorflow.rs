//! What the server computes from `tf_model.h5` equals what the `TFBlip` class computes that wrote it: texts, scores and
//! features, as a client sees them.

use serde_json::{Value, json};

use super::fixtures;
use super::server::{RealServer, image};

/// Maximum difference, relative to the largest expected magnitude or 1.
const TOLERANCE: f64 = 1e-4;
/// As in the script that wrote the reference.
const NEW_TOKENS: usize = 10;

/// The part of the reference for one class.
fn reference(class: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join("tensorflow/reference.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[class].take()
}

async fn server(class: &str) -> RealServer {
    RealServer::start(&[&format!("tensorflow/{class}")], &[]).await
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0, |largest: f64, value| largest.max(value.abs()));
    for (actual, expected) in actual.iter().zip(expected) {
        assert!(
            (actual - expected).abs() <= TOLERANCE * largest,
            "{what}: {actual} for {expected}"
        );
    }
}

fn check_sequence(actual: &Value, text: &str, expected: &Value) {
    assert_eq!(actual[text], expected["text"]);
    assert_eq!(actual["token_count"], expected["count"], "{expected}");
    let logprobs = [&actual["logprob"], &expected["logprob"]].map(|value| value.as_f64().unwrap());
    assert_close(&expected.to_string(), &logprobs[..1], &logprobs[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_equal_those_of_the_tensorflow_class() {
    let server = server("caption").await;
    for case in reference("caption").as_array().unwrap() {
        let mut request =
            json!({"image": image(case["photo"].as_str().unwrap()), "max_new_tokens": NEW_TOKENS});
        if let Some(prompt) = case["prompt"].as_str() {
            request["prompt"] = json!(prompt);
        }
        let answer = server.ask("/caption", &request).await;
        check_sequence(&answer["captions"][0], "text", case);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_equal_those_of_the_tensorflow_class() {
    let server = server("vqa").await;
    for case in reference("vqa").as_array().unwrap() {
        let photo = image(case["photo"].as_str().unwrap());
        let request =
            json!({"image": photo, "question": case["question"], "max_new_tokens": NEW_TOKENS});
        let answer = server.ask("/vqa", &request).await;
        check_sequence(&answer["answers"][0], "answer", case);
    }
    server.stop().await;
}

/// The answer of `/similarity` for all photos and texts of a reference: one field of each pair, row by row.
async fn scores(server: &RealServer, reference: &Value, field: &str) -> Vec<f64> {
    let photos = reference["photos"].as_array().unwrap().iter();
    let images: Vec<Value> = photos.map(|photo| image(photo.as_str().unwrap())).collect();
    let request = json!({"images": images, "texts": reference["texts"]});
    let answer = server.ask("/similarity", &request).await;
    let rows = answer["scores"].as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap()).map(|pair| pair[field].as_f64().unwrap()).collect()
}

fn flat(rows: &Value) -> Vec<f64> {
    rows.as_array().unwrap().iter().flat_map(numbers).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn matching_and_cosines_equal_those_of_the_tensorflow_class() {
    let (server, reference) = (server("retrieval").await, reference("retrieval"));
    assert_close(
        "cosine",
        &scores(&server, &reference, "cosine").await,
        &flat(&reference["cosine"]),
    );
    // The two logits are (no match, match), and the server answers with the softmax of the second.
    let pairs =
        reference["itm_logits"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
    let matching = |logits: &Value| match numbers(logits)[..] {
        [no, yes] => 1.0 / (1.0 + (no - yes).exp()),
        _ => panic!("not two logits: {logits}"),
    };
    let expected: Vec<f64> = pairs.map(matching).collect();
    assert_close("match", &scores(&server, &reference, "match").await, &expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_equal_those_of_the_tensorflow_class() {
    let (server, reference) = (server("base").await, reference("base"));
    for (list, features) in [("photos", "image_features"), ("texts", "text_features")] {
        let named = reference[list].as_array().unwrap().iter();
        for (name, expected) in named.zip(reference[features].as_array().unwrap()) {
            let mut request = json!({"normalize": false});
            if list == "photos" {
                request["image"] = image(name.as_str().unwrap());
            } else {
                request["text"] = name.clone();
            }
            let answer = server.ask("/embeddings", &request).await;
            assert_close(&name.to_string(), &numbers(&answer["embedding"]), &numbers(expected));
        }
    }
    let logits = scores(&server, &reference, "logit").await;
    assert_close("logits", &logits, &flat(&reference["logits_per_image"]));
    server.stop().await;
}
