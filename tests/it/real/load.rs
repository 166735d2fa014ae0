//! The real server under a few hundred mixed requests at once: every request answered once, metrics add up.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::PHOTOS;
use super::server::{RealServer, image};

/// Requests sent at once.
const REQUESTS: usize = 300;
/// No limit is to be met here; refusals have tests of their own.
const ROOM: [(&str, &str); 4] = [
    ("ENGINE__CAPACITY_ROWS", "4096"),
    ("ENGINE__MAX_QUEUE_WAIT_MS", "600000"),
    ("SERVER__DEADLINE_MS", "600000"),
    ("IMAGES__DECODE_QUEUE", "4096"),
];

/// The i-th request: all endpoints, photos and several parameters take turns.
fn request(index: usize) -> (&'static str, Value) {
    let photo = image(PHOTOS[index % PHOTOS.len()]);
    match index % 7 {
        0 => ("/caption", json!({"image": photo})),
        1 => ("/caption", json!({"image": photo, "prompt": "a man", "num_beams": 3})),
        2 => (
            "/caption",
            json!({"image": photo, "do_sample": true, "seed": index, "num_return_sequences": 2}),
        ),
        3 => ("/vqa", json!({"image": photo, "questions": ["what is it ?", "how many ?"]})),
        4 => (
            "/vqa",
            json!({"image": photo, "question": "where ?", "candidates": ["city", "a man"]}),
        ),
        5 => ("/similarity", json!({"image": photo, "texts": ["a man", "the city", "a cat"]})),
        _ => ("/embeddings/batch", json!({"inputs": [{"image": photo}, {"text": "a man"}]})),
    }
}

/// An answer without what rounding may move.
fn texts_of(answer: &Value) -> Vec<String> {
    let lists = ["captions", "answers"].into_iter().filter_map(|list| answer[list].as_array());
    lists.flatten().map(|one| format!("{}{}", one["text"], one["answer"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_many_mixed_requests_is_answered_once_and_metrics_add_up() {
    let checkpoints = ["caption-talkative", "vqa-talkative", "retrieval"];
    let server = Arc::new(RealServer::start(&checkpoints, &ROOM).await);
    let mut running = JoinSet::new();
    for index in 0..REQUESTS {
        let server = Arc::clone(&server);
        running.spawn(async move {
            let (path, body) = request(index);
            (index, server.ask(path, &body).await)
        });
    }
    let answers = running.join_all().await;
    assert_eq!(answers.len(), REQUESTS);
    for (index, answer) in &answers {
        let (path, body) = request(*index);
        assert_eq!(
            texts_of(answer),
            texts_of(&server.ask(path, &body).await),
            "request {index}, {path}"
        );
    }
    let asked = 2.0 * REQUESTS as f64;
    let inference = "blip_http_requests_total{code=\"ok\",method=\"POST\"";
    assert!((server.metric(inference).await - asked).abs() < 0.5);
    // A batch of two embeddings counts two items.
    let batches = (0..REQUESTS).filter(|index| request(*index).0.ends_with("/batch")).count();
    let items = asked + 2.0 * batches as f64;
    assert!((server.metric("blip_items_total").await - items).abs() < 0.5);
    for gauge in
        ["blip_queue_rows ", "blip_queue_bytes ", "blip_queue_depth", "blip_decode_permits_in_use "]
    {
        assert!(server.metric(gauge).await.abs() < 0.5, "{gauge} is not back at zero");
    }
    // Four photos, three towers, and every later look found them in the cache.
    assert!((server.metric("blip_images_encoded_total").await - 12.0).abs() < 0.5);
    Arc::into_inner(server).expect("every request is over").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_caches_one_call_encodes_an_image_once_for_all_its_questions_and_pairs() {
    let off = [("ENGINE__FEATURE_CACHE_BYTES", "0"), ("IMAGES__PIXEL_CACHE_BYTES", "0")];
    let server = RealServer::start(&["vqa-talkative", "retrieval"], &off).await;
    let questions =
        json!({"image": image("chelsea"), "questions": ["what ?", "where ?", "how many ?"]});
    server.ask("/vqa", &questions).await;
    assert!((server.metric("blip_images_encoded_total").await - 1.0).abs() < 0.5);
    let pairs = json!({"image": image("chelsea"), "texts": ["a man", "a cat"]});
    server.ask("/similarity", &pairs).await;
    // Another tower has other features of the same image.
    assert!((server.metric("blip_images_encoded_total").await - 2.0).abs() < 0.5);
    server.ask("/similarity", &pairs).await;
    assert!((server.metric("blip_images_encoded_total").await - 3.0).abs() < 0.5);
    server.stop().await;
}
