//! What a client sees equals what transformers' processor and model give: texts, reasons, probabilities, embeddings,
//! through tokenizer, decoding, resizing, engine and JSON.

use serde_json::{Value, json};

use super::reference;
use super::server::{RealServer, image};

/// Scores through JSON against the reference: the goldens' own tolerance.
const TOLERANCE: f64 = 1e-4;

/// A golden's parameters beside the other fields of a request.
fn with_params(mut request: Value, params: &Value) -> Value {
    let request_fields = request.as_object_mut().unwrap();
    request_fields.extend(params.as_object().unwrap().clone());
    request
}

fn check_sequence(what: &str, actual: &Value, text: &str, expected: &Value) {
    assert_eq!(actual[text], expected["text"], "{what}");
    assert_eq!(actual["finish_reason"], expected["finish_reason"], "{what}");
    let count = expected["new_ids"].as_array().unwrap().len();
    assert_eq!(actual["token_count"], count, "{what}");
    let (logprob, known) =
        (actual["logprob"].as_f64().unwrap(), expected["logprob"].as_f64().unwrap());
    assert!(
        (logprob - known).abs() <= TOLERANCE * known.abs().max(1.0),
        "{what}: {logprob} for {known}"
    );
}

/// The goldens of a checkpoint, with those of `reference/parameters.json`.
fn generation_goldens(checkpoint: &str) -> Vec<Value> {
    let mut goldens = reference(checkpoint)["generation"].as_array().unwrap().clone();
    if let Some(more) = reference("parameters")[checkpoint].as_array() {
        assert!(more.len() >= 15, "{checkpoint}: {}", more.len());
        goldens.extend(more.iter().cloned());
    }
    goldens
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_equal_the_reference_for_every_golden() {
    for checkpoint in ["caption-varied", "caption-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        for case in &generation_goldens(checkpoint) {
            let mut request = json!({"image": image(case["photo"].as_str().unwrap())});
            if let Some(prompt) = case["prompt"].as_str() {
                request["prompt"] = json!(prompt);
            }
            let params = effective(&case["params"]);
            let answer = server.ask("/caption", &with_params(request, &params)).await;
            let what = format!("{checkpoint} {}", case["name"]);
            let captions = answer["captions"].as_array().unwrap();
            let expected = case["sequences"].as_array().unwrap();
            assert_eq!(captions.len(), expected.len(), "{what}");
            for (caption, expected) in captions.iter().zip(expected) {
                check_sequence(&what, caption, "text", expected);
                let continuation = case["prompt"].is_string().then_some(&expected["continuation"]);
                assert_eq!(caption.get("continuation"), continuation, "{what}");
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_equal_the_reference_for_every_golden() {
    for checkpoint in ["vqa-varied", "vqa-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        for case in &generation_goldens(checkpoint) {
            let photo = image(case["photo"].as_str().unwrap());
            let request = json!({"image": photo, "question": case["question"]});
            let answer =
                server.ask("/vqa", &with_params(request, &effective(&case["params"]))).await;
            let what = format!("{checkpoint} {}", case["name"]);
            let answers = answer["answers"].as_array().unwrap();
            let expected = case["sequences"].as_array().unwrap();
            assert_eq!(answers.len(), expected.len(), "{what}");
            for (answer, expected) in answers.iter().zip(expected) {
                check_sequence(&what, answer, "answer", expected);
            }
        }
        server.stop().await;
    }
}

/// The goldens spell out `early_stopping: false`, which is the default and here only noise.
fn effective(params: &Value) -> Value {
    let mut params = params.clone();
    if params["early_stopping"] == json!(false) {
        params.as_object_mut().unwrap().remove("early_stopping");
    }
    params
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_ranked_as_the_reference_scores_them() {
    for checkpoint in ["vqa-varied", "vqa-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        for case in reference(checkpoint)["candidates"].as_array().unwrap() {
            let mut expected: Vec<(&str, f64)> = case["candidates"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| (one["answer"].as_str().unwrap(), one["probability"].as_f64().unwrap()))
                .collect();
            let names: Vec<&str> = expected.iter().map(|(answer, _)| *answer).collect();
            let photo = image(case["photo"].as_str().unwrap());
            let request =
                json!({"image": photo, "question": case["question"], "candidates": names});
            let answer = server.ask("/vqa", &request).await;
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));
            let ranking = answer["answers"][0]["ranking"].as_array().unwrap();
            for (actual, (name, probability)) in ranking.iter().zip(&expected) {
                assert_eq!(actual["answer"], *name, "{checkpoint} {}", case["question"]);
                let given = actual["probability"].as_f64().unwrap();
                assert!(
                    (given - probability).abs() < TOLERANCE,
                    "{name}: {given} for {probability}"
                );
            }
            assert_eq!(answer["answers"][0]["answer"], expected[0].0);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn similarities_and_embeddings_agree_with_each_other() {
    let server = RealServer::start(&["retrieval", "base"], &[]).await;
    for model in ["retrieval", "base"] {
        let texts = ["a cat", "a cup of coffee"];
        let request =
            json!({"model": model, "images": [image("chelsea"), image("coffee")], "texts": texts});
        let scores = server.ask("/similarity", &request).await["scores"].clone();
        let vector = async |fields: Value| {
            let mut fields = fields;
            fields["model"] = json!(model);
            let answer = server.ask("/embeddings", &fields).await;
            let values = answer["embedding"].as_array().unwrap().iter();
            values.map(|value| value.as_f64().unwrap()).collect::<Vec<f64>>()
        };
        for (row, photo) in ["chelsea", "coffee"].iter().enumerate() {
            let of_image = vector(json!({"image": image(photo)})).await;
            let norm: f64 = of_image.iter().map(|value| value * value).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{model} {photo}: {norm}");
            for (column, text) in texts.iter().enumerate() {
                let of_text = vector(json!({"text": text})).await;
                let dot: f64 = of_image.iter().zip(&of_text).map(|(a, b)| a * b).sum();
                let cosine = scores[row][column]["cosine"].as_f64().unwrap();
                assert!((dot - cosine).abs() < 1e-5, "{model} {photo} {text}: {dot} for {cosine}");
            }
        }
        assert_eq!(scores[0][0].get("match").is_some(), model == "retrieval");
        assert_eq!(scores[0][0].get("logit").is_some(), model == "base");
    }
    server.stop().await;
}
