//! `/vqa`.

use blip_server::engine::testing::fake::FakeCall;
use serde_json::{Value, json};

use crate::support::{TestApp, base64, png};

fn texts<'a>(items: &'a Value, field: &str) -> Vec<&'a str> {
    items.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_in_order_from_one_look_at_the_image() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "questions": ["How many?", "what color?"]});
    let answer = app.json("/vqa", &request).await.ok();
    assert_eq!(answer["model"], "fake-vqa");
    assert_eq!(texts(&answer["answers"], "question"), ["How many?", "what color?"]);
    for fact in ["answer", "token_count", "finish_reason", "logprob", "avg_logprob"] {
        assert!(answer["answers"][0].get(fact).is_some(), "{fact}");
    }
    assert!(answer["answers"][0].get("ranking").is_none());
    let encodes = app.control.log().iter().filter(|unit| unit.call == FakeCall::Encode).count();
    assert_eq!(encodes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_is_answered_like_a_list_of_one() {
    let app = TestApp::start();
    let one = json!({"image": base64(&png(1)), "question": "how many?"});
    let list = json!({"image": base64(&png(1)), "questions": ["how many?"]});
    assert_eq!(app.json("/vqa", &one).await.ok(), app.json("/vqa", &list).await.ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sequences_of_a_question_follow_one_another() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "questions": ["a", "b"], "num_beams": 3, "num_return_sequences": 2});
    let answer = app.json("/vqa", &request).await.ok();
    assert_eq!(texts(&answer["answers"], "question"), ["a", "a", "b", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_ranked_with_probabilities_that_sum_to_one() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "question": "how many?", "candidates": ["one", "two", "three"]});
    let answer = app.json("/vqa", &request).await.ok();
    let found = &answer["answers"][0];
    let ranking = found["ranking"].as_array().unwrap();
    assert_eq!(found["answer"], ranking[0]["answer"]);
    let number = |item: &Value, field: &str| item[field].as_f64().unwrap();
    assert!(
        ranking.windows(2).all(|pair| number(&pair[0], "logprob") >= number(&pair[1], "logprob"))
    );
    let sum: f64 = ranking.iter().map(|item| number(item, "probability")).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let mut names = texts(&found["ranking"], "answer");
    names.sort_unstable();
    assert_eq!(names, ["one", "three", "two"]);
    let fields: Vec<_> = found.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["answer", "question", "ranking"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_combination_is_a_400_at_its_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        (json!({}), "question"),
        (json!({"question": "a", "questions": ["b"]}), "question"),
        (json!({"questions": []}), "questions"),
        (json!({"questions": ["a", ""]}), "questions[1]"),
        (json!({"questions": "a"}), "questions"),
        (json!({"question": "a", "candidates": []}), "candidates"),
        (json!({"question": "a", "candidates": ["x", "y", "x"]}), "candidates[2]"),
        (json!({"question": "a", "candidates": [""]}), "candidates[0]"),
        (json!({"question": "a", "candidates": ["x"], "max_new_tokens": 5}), "max_new_tokens"),
        (json!({"question": "a", "stream": true}), "stream"),
    ];
    for (mut request, field) in cases {
        request["image"] = json!(image);
        let answer = app.json("/vqa", &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_limits_is_a_422_that_names_them() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let many = |count: usize| (0..count).map(|index| format!("q {index}")).collect::<Vec<_>>();
    let cases = [
        (json!({"image": image, "questions": many(17)}), "limits.max_questions"),
        (
            json!({"image": image, "question": "a", "candidates": many(129)}),
            "limits.max_candidates",
        ),
        (json!({"image": image, "questions": many(3), "candidates": many(100)}), "limits.max_rows"),
    ];
    for (request, limit) in cases {
        let problem = app.json("/vqa", &request).await.refused(422, "batch_too_large");
        assert!(problem["detail"].as_str().unwrap().contains(limit), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_question_is_named() {
    let app = TestApp::start();
    let long = "a ".repeat(600);
    let request = json!({"image": base64(&png(1)), "questions": ["short", long]});
    let answer = app.json("/vqa", &request).await;
    assert_eq!(answer.refused_field(422, "text_too_long"), "questions[1]");
    let request = json!({"image": base64(&png(1)), "question": "x".repeat(5000)});
    assert_eq!(app.json("/vqa", &request).await.refused_field(422, "text_too_long"), "question");
}
