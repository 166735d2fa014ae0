//! `/similarity`.

use serde_json::json;

use crate::support::{TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn every_image_is_scored_against_every_text() {
    let app = TestApp::start();
    let request = json!({"images": [base64(&png(1)), base64(&png(2))], "texts": ["a", "b", "c"]});
    let answer = app.json("/similarity", &request).await.ok();
    assert_eq!(answer["model"], "fake-retrieval");
    assert_eq!(answer["images"].as_array().unwrap().len(), 2);
    let scores = answer["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 2);
    for row in scores {
        let row = row.as_array().unwrap();
        assert_eq!(row.len(), 3);
        for cell in row {
            let fields: Vec<_> = cell.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["cosine", "match"]);
            assert!((0.0..=1.0).contains(&cell["match"].as_f64().unwrap()));
        }
    }
    // Cell by cell the same as alone.
    let alone = app.json("/similarity", &json!({"image": base64(&png(2)), "text": "c"})).await.ok();
    assert_eq!(alone["scores"], json!([[scores[1][2]]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_scores_asked_for_are_computed() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "text": "a", "scores": ["cosine"]});
    let cell = &app.json("/similarity", &request).await.ok()["scores"][0][0];
    assert_eq!(cell.as_object().unwrap().keys().collect::<Vec<_>>(), ["cosine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_matching_head_gives_cosine_and_logit() {
    let app = TestApp::start();
    let mut request = json!({"image": base64(&png(1)), "text": "a", "model": "fake-clip"});
    let answer = app.json("/similarity", &request).await.ok();
    let cell = &answer["scores"][0][0];
    assert_eq!(cell.as_object().unwrap().keys().collect::<Vec<_>>(), ["cosine", "logit"]);
    let (cosine, logit) = (cell["cosine"].as_f64().unwrap(), cell["logit"].as_f64().unwrap());
    assert!((cosine * 100.0 - logit).abs() < 1e-3);
    request["scores"] = json!(["match"]);
    let answer = app.json("/similarity", &request).await;
    assert_eq!(answer.refused_field(422, "score_not_available"), "scores");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_combination_is_a_400_at_its_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        (json!({"text": "a"}), "image"),
        (json!({"image": image}), "text"),
        (json!({"image": image, "images": [image], "text": "a"}), "image"),
        (json!({"images": [], "text": "a"}), "images"),
        (json!({"image": image, "texts": []}), "texts"),
        (json!({"image": image, "text": "a", "texts": ["b"]}), "text"),
        (json!({"image": image, "text": "a", "scores": []}), "scores"),
        (json!({"image": image, "text": "a", "scores": ["match", "match"]}), "scores"),
        (json!({"image": image, "text": "a", "scores": ["dot"]}), "scores[0]"),
        (json!({"images": [image, "no base64!"], "text": "a"}), "images[1]"),
    ];
    for (request, field) in cases {
        let answer = app.json("/similarity", &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_named_by_its_place() {
    let app = TestApp::start();
    let mut broken = png(1);
    broken.truncate(40);
    let request = json!({"images": [base64(&png(1)), base64(&broken)], "text": "a"});
    let answer = app.json("/similarity", &request).await;
    assert_eq!(answer.refused_field(422, "undecodable_image"), "images[1]");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_limits_is_a_422_that_names_them() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let texts = |count: usize| vec!["a"; count];
    let cases = [
        (json!({"images": vec![image.clone(); 17], "text": "a"}), "limits.max_images"),
        (json!({"image": image, "texts": texts(129)}), "limits.max_texts"),
        (json!({"images": vec![image.clone(); 16], "texts": texts(16)}), "limits.max_rows"),
    ];
    for (request, limit) in cases {
        let problem = app.json("/similarity", &request).await.refused(422, "batch_too_large");
        assert!(problem["detail"].as_str().unwrap().contains(limit), "{problem}");
    }
}
