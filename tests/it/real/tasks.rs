//! Scored candidates, verified captions, classification and ranking equal what scripts of transformers calls answer
//! (`tests/fixtures/make_tasks.py`), through tokenizer, decoding, engine and JSON.

use serde_json::{Value, json};

use super::server::{RealServer, image};
use super::{PHOTOS, reference};

/// The goldens' own tolerance: largest difference over magnitude.
const TOLERANCE: f64 = 1e-4;

fn close(what: &str, actual: &Value, expected: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{what}: {value}"));
    let (actual, expected) = (number(actual), number(expected));
    let error = (actual - expected).abs();
    assert!(error <= TOLERANCE * expected.abs().max(1.0), "{what}: {actual} for {expected}");
}

fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("{field} in {value}"))
}

fn photo(case: &Value) -> Value {
    image(case["photo"].as_str().unwrap())
}

/// Checks a ranking against the losses of the reference, which are in the order of the candidates.
fn check_ranking(what: &str, ranking: &[Value], text: &str, case: &Value) {
    let (candidates, losses) = (list(case, "candidates"), list(case, "losses"));
    assert_eq!(ranking.len(), candidates.len(), "{what}");
    for ranked in ranking {
        let place = candidates.iter().position(|candidate| *candidate == ranked[text]).unwrap();
        close(what, &ranked["loss"], &losses[place]);
        let tokens = list(ranked, "tokens");
        assert_eq!(tokens.len() as u64, ranked["token_count"].as_u64().unwrap(), "{what}");
        assert_eq!(tokens.last().unwrap()["text"], "[SEP]", "{what}");
        let sum: f64 = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
        close(what, &ranked["logprob"], &json!(sum));
        let mean = sum / tokens.len() as f64;
        close(what, &ranked["avg_logprob"], &json!(mean));
        close(what, &losses[place], &json!(-mean));
    }
    let logprobs = ranking.iter().map(|ranked| ranked["logprob"].as_f64().unwrap());
    assert!(logprobs.is_sorted_by(|a, b| a >= b), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn caption_candidates_have_the_loss_of_the_reference() {
    let cases = reference("tasks");
    for checkpoint in ["caption-varied", "caption-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        for case in list(&cases, "captions") {
            if case["checkpoint"] != checkpoint {
                continue;
            }
            let request =
                json!({"image": photo(case), "candidates": case["candidates"], "tokens": true});
            let answer = server.ask("/caption", &request).await;
            let what = format!("{checkpoint} {}", case["photo"]);
            check_ranking(&what, list(&answer, "ranking"), "text", case);
            assert!(list(&answer, "captions").is_empty(), "{what}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_candidates_have_the_loss_of_the_reference() {
    let cases = reference("tasks");
    for checkpoint in ["vqa-varied", "vqa-talkative"] {
        let server = RealServer::start(&[checkpoint], &[]).await;
        for case in list(&cases, "answers") {
            if case["checkpoint"] != checkpoint {
                continue;
            }
            let (question, candidates) = (&case["question"], &case["candidates"]);
            let request = json!({"image": photo(case), "question": question, "candidates": candidates, "tokens": true});
            let answer = server.ask("/vqa", &request).await;
            let what = format!("{checkpoint} {} {question}", case["photo"]);
            check_ranking(&what, list(&answer["answers"][0], "ranking"), "answer", case);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn match_logits_equal_the_reference() {
    let server = RealServer::start(&["retrieval"], &[]).await;
    let cases = reference("tasks");
    let rerank = cases["rank_texts"][0]["rerank"].as_u64().unwrap() as usize;
    for case in list(&cases, "rank_texts") {
        let request = json!({"image": photo(case), "texts": case["texts"], "scores": ["match_logits", "match"]});
        let scores = server.ask("/similarity", &request).await["scores"][0].clone();
        for result in &list(case, "results")[..rerank] {
            let cell = &scores[result["index"].as_u64().unwrap() as usize];
            let logits = list(cell, "match_logits");
            let logit = result["score"].as_f64().unwrap() - result["cosine"].as_f64().unwrap();
            close("match logit", &logits[1], &json!(logit));
            let difference = logits[0].as_f64().unwrap() - logits[1].as_f64().unwrap();
            close("match", &cell["match"], &json!(1.0 / (1.0 + difference.exp())));
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classification_equals_the_reference_by_both_rules() {
    let server = RealServer::start(&["retrieval"], &[]).await;
    for case in list(&reference("tasks"), "classify") {
        for (by, score, scores) in [("cosine", "cosine", "cosines"), ("match", "match", "matches")]
        {
            let request = json!({"image": photo(case), "labels": case["labels"], "by": by});
            let answer = server.ask("/classify", &request).await;
            let labels = list(&answer, "labels");
            assert_eq!(labels.len(), list(case, "labels").len());
            for label in labels {
                let place = list(case, "labels").iter().position(|l| *l == label["label"]).unwrap();
                close(by, &label[score], &case[scores][place]);
                close(by, &label["probability"], &case[format!("by_{by}")][place]);
            }
            let order = labels.iter().map(|label| label["probability"].as_f64().unwrap());
            assert!(order.is_sorted_by(|a, b| a >= b), "{answer}");
        }
    }
    server.stop().await;
}

/// Checks the results of /rank against the reference, in their order.
fn check_results(what: &str, answer: &Value, case: &Value) {
    let (results, expected) = (list(answer, "results"), list(case, "results"));
    assert_eq!(results.len(), expected.len(), "{what}");
    for (place, (result, expected)) in results.iter().zip(expected).enumerate() {
        assert_eq!(result["index"], expected["index"], "{what} {place}");
        close(what, &result["cosine"], &expected["cosine"]);
        close(what, &result["score"], &expected["score"]);
        let is_again = place < case["rerank"].as_u64().unwrap() as usize;
        assert_eq!(result.get("match").is_some(), is_again, "{what} {place}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranking_equals_the_reference_in_both_directions_alone_and_in_a_batch() {
    let server = RealServer::start(&["retrieval"], &[]).await;
    let cases = reference("tasks");
    for case in list(&cases, "rank_texts") {
        let request =
            json!({"image": photo(case), "texts": case["texts"], "rerank": case["rerank"]});
        let answer = server.ask("/rank", &request).await;
        check_results(&case["photo"].to_string(), &answer, case);
    }
    let images: Vec<Value> = PHOTOS.iter().map(|name| image(name)).collect();
    let texts = list(&cases, "rank_images");
    assert_eq!(texts[0]["photos"], json!(PHOTOS));
    for case in texts {
        let request = json!({"text": case["text"], "images": images, "rerank": case["rerank"]});
        check_results(&case["text"].to_string(), &server.ask("/rank", &request).await, case);
    }
    let inputs: Vec<Value> = texts.iter().map(|case| json!({"text": case["text"]})).collect();
    let batch = json!({"inputs": inputs, "images": images, "rerank": texts[0]["rerank"]});
    let answers = server.ask("/rank/batch", &batch).await;
    for (answer, case) in list(&answers, "results").iter().zip(texts) {
        check_results(&case["text"].to_string(), answer, case);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_captions_have_the_match_of_similarity_and_share_its_vision_pass() {
    let server = RealServer::start(&["caption-varied", "retrieval"], &[]).await;
    let before = server.metric("blip_images_encoded_total").await;
    for (index, name) in PHOTOS.iter().enumerate() {
        let request = json!({"image": image(name), "num_beams": 4, "num_return_sequences": 4, "verify": true});
        let answer = server.ask("/caption", &request).await;
        let captions = list(&answer, "captions");
        assert_eq!(captions.len(), 4);
        let encoded = server.metric("blip_images_encoded_total").await - before;
        assert!((encoded - (index + 1) as f64).abs() < 0.5, "one vision pass for each image");
        let texts: Vec<&Value> = captions.iter().map(|caption| &caption["text"]).collect();
        let request = json!({"image": image(name), "texts": texts, "scores": ["match"]});
        let scores = server.ask("/similarity", &request).await["scores"][0].clone();
        for (place, caption) in captions.iter().enumerate() {
            close(name, &caption["match"], &scores[place]["match"]);
        }
        let order = captions.iter().map(|caption| caption["match"].as_f64().unwrap());
        assert!(order.is_sorted_by(|a, b| a >= b), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_prepares_images_differently_can_verify_too() {
    // Their vision towers, and even the sizes of their images, differ.
    let server = RealServer::start(&["caption-talkative", "retrieval"], &[]).await;
    for name in PHOTOS {
        let request = json!({"image": image(name), "verify": "retrieval"});
        let answer = server.ask("/caption", &request).await;
        let caption = &answer["captions"][0];
        let request = json!({"image": image(name), "text": caption["text"], "scores": ["match"]});
        let scores = server.ask("/similarity", &request).await;
        close(name, &caption["match"], &scores["scores"][0][0]["match"]);
    }
    server.stop().await;
}
