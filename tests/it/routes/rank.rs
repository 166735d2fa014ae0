//! `/rank` and `/classify`.

use serde_json::{Value, json};

use crate::support::{TestApp, base64, png};

fn indices(answer: &Value) -> Vec<u64> {
    let results = answer["results"].as_array().unwrap_or_else(|| panic!("{answer}"));
    results.iter().map(|result| result["index"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_candidates_come_first_and_are_scored_again() {
    let app = TestApp::start();
    let images: Vec<String> = (0..30).map(|mark| base64(&png(mark))).collect();
    let answer = app.json("/rank", &json!({"text": "a cat", "images": images})).await.ok();
    assert_eq!(answer["model"], "fake-retrieval");
    assert_eq!((indices(&answer).len(), answer["images"].as_array().unwrap().len()), (10, 30));
    let results = answer["results"].as_array().unwrap();
    assert!(results.iter().all(|result| result["match"].is_f64()), "16 were scored again");
    let scores = results.iter().map(|result| result["score"].as_f64().unwrap());
    assert!(scores.is_sorted_by(|a, b| a >= b), "{answer}");

    let cosine_only = json!({"text": "a cat", "images": images, "rerank": 0, "top_k": 30});
    let answer = app.json("/rank", &cosine_only).await.ok();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 30);
    assert!(results.iter().all(|result| result.get("match").is_none()));
    assert!(results.iter().all(|result| result["score"] == result["cosine"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_candidates_as_the_limit_can_be_ranked() {
    let app = TestApp::start();
    let texts: Vec<String> = (0..256).map(|index| format!("text {index}")).collect();
    let request = json!({"image": base64(&png(1)), "texts": texts, "rerank": 64, "top_k": 256});
    let answer = app.json("/rank", &request).await.ok();
    let mut found = indices(&answer);
    found.sort_unstable();
    assert_eq!(found, (0..256).collect::<Vec<u64>>());
    let more: Vec<String> = (0..257).map(|index| format!("text {index}")).collect();
    let answer = app.json("/rank", &json!({"image": base64(&png(1)), "texts": more})).await;
    assert_eq!(answer.refused_field(422, "batch_too_large"), "texts");
    assert!(answer.text().contains("limits.max_rank_candidates"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_matching_head_ranks_by_cosine() {
    let app = TestApp::start();
    let texts = ["a", "b", "c"];
    let request = json!({"model": "fake-clip", "image": base64(&png(1)), "texts": texts});
    let answer = app.json("/rank", &request).await.ok();
    assert!(answer["results"].as_array().unwrap().iter().all(|r| r.get("match").is_none()));
    let request =
        json!({"model": "fake-clip", "image": base64(&png(1)), "texts": texts, "rerank": 2});
    let answer = app.json("/rank", &request).await;
    assert_eq!(answer.refused_field(422, "score_not_available"), "rerank");
    let request =
        json!({"model": "fake-clip", "image": base64(&png(1)), "labels": texts, "by": "match"});
    let answer = app.json("/classify", &request).await;
    assert_eq!(answer.refused_field(422, "score_not_available"), "by");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_combination_is_a_400_at_its_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        ("/rank", json!({"text": "a"}), "images"),
        ("/rank", json!({"image": image}), "texts"),
        ("/rank", json!({"text": "a", "image": image}), "image"),
        ("/rank", json!({"image": image, "texts": ["a"], "top_k": 0}), "top_k"),
        ("/classify", json!({"image": image}), "labels"),
        ("/classify", json!({"labels": ["a"]}), "image"),
        ("/classify", json!({"image": image, "labels": ["a", "a"]}), "labels[1]"),
        ("/classify", json!({"image": image, "labels": ["a"], "template": "no place"}), "template"),
        ("/classify", json!({"image": image, "labels": ["a"], "template": "{} {}"}), "template"),
        ("/classify", json!({"image": image, "labels": ["a"], "temperature": 0}), "temperature"),
        ("/rank", json!({"image": image, "texts": ["a"], "rerank": 65}), "rerank"),
        (
            "/classify",
            json!({"image": image, "labels": ["a"], "by": "match", "temperature": 1}),
            "temperature",
        ),
    ];
    for (path, request, field) in cases {
        let answer = app.json(path, &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_template_is_refused_before_it_is_copied() {
    let app = TestApp::start();
    let template = format!("{{}} {}", "a ".repeat(600));
    let request = json!({"image": base64(&png(1)), "labels": ["a"], "template": template});
    let answer = app.json("/classify", &request).await;
    assert_eq!(answer.refused_field(422, "text_too_long"), "template");
}
