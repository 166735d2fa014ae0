//! The demo models know what the sample scenes show: sentences, answers and rankings, as a client gets them.
//! A model that is loaded wrongly says something else here.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::server::RealServer;

/// One of `demo/scenes`, with what is true of it; `demo/samples.py` writes them.
#[derive(Deserialize)]
struct Scene {
    file: String,
    caption: String,
    questions: Vec<Question>,
    /// Only the first is true.
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    answer: String,
}

impl Scene {
    fn image(&self) -> Value {
        let bytes = std::fs::read(folder().join(&self.file)).unwrap();
        json!(base64::engine::general_purpose::STANDARD.encode(bytes))
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/scenes")
}

fn scenes() -> Vec<Scene> {
    let text = std::fs::read_to_string(folder().join("scenes.json")).unwrap();
    let scenes: Vec<Scene> = serde_json::from_str(&text).unwrap();
    assert_eq!(scenes.len(), 12);
    scenes
}

async fn server() -> RealServer {
    RealServer::serve(vec!["demo".to_owned()], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_scene_gets_its_caption_alone_and_after_a_prompt() {
    let server = server().await;
    for scene in scenes() {
        let answer = server.ask("/caption", &json!({"image": scene.image()})).await;
        assert_eq!(answer["captions"][0]["text"], scene.caption, "{}", scene.file);
        assert_eq!(answer["model"], "demo-caption");
        let request = json!({"image": scene.image(), "prompt": "a picture of"});
        let answer = server.ask("/caption", &request).await;
        assert_eq!(answer["captions"][0]["continuation"], scene.caption, "{}", scene.file);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_about_a_sample_scene_gets_its_answer() {
    let server = server().await;
    for scene in scenes() {
        let questions: Vec<&str> = scene.questions.iter().map(|q| q.question.as_str()).collect();
        let request = json!({"image": scene.image(), "questions": questions});
        let answer = server.ask("/vqa", &request).await;
        for (got, expected) in answer["answers"].as_array().unwrap().iter().zip(&scene.questions) {
            assert_eq!(got["answer"], expected.answer, "{}: {}", scene.file, expected.question);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_true_text_matches_a_sample_scene() {
    let server = server().await;
    for scene in scenes() {
        let request = json!({"image": scene.image(), "texts": scene.texts});
        let answer = server.ask("/similarity", &request).await;
        for (index, text) in scene.texts.iter().enumerate() {
            let probability = answer["scores"][0][index]["match"].as_f64().unwrap();
            assert_eq!(probability > 0.5, index == 0, "{}: {text}: {probability}", scene.file);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embeddings_find_the_caption_of_each_sample_scene() {
    let server = server().await;
    let scenes = scenes();
    let mut texts = Vec::new();
    for scene in &scenes {
        texts.push(embedding(&server, &json!({"text": scene.caption})).await);
    }
    for (index, scene) in scenes.iter().enumerate() {
        let image = embedding(&server, &json!({"image": scene.image()})).await;
        let cosine = |text: &Vec<f64>| -> f64 { image.iter().zip(text).map(|(a, b)| a * b).sum() };
        let best =
            (0..texts.len()).max_by(|a, b| cosine(&texts[*a]).total_cmp(&cosine(&texts[*b])));
        assert_eq!(best, Some(index), "{}", scene.file);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_demo_models_encode_a_scene_once_and_say_what_they_are() {
    let server = server().await;
    let image = scenes()[0].image();
    server.ask("/caption", &json!({"image": image})).await;
    server.ask("/vqa", &json!({"image": image, "question": "what is this?"})).await;
    server.ask("/similarity", &json!({"image": image, "text": "two cats"})).await;
    assert!((server.metric("blip_images_encoded_total").await - 1.0).abs() < f64::EPSILON);
    let info = server.get("/info").await;
    let models = info["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    for model in models {
        assert_eq!(model["demo"], true);
        assert!(model["note"].as_str().unwrap().contains("synthetic scenes"), "{model}");
    }
    server.stop().await;
}

async fn embedding(server: &RealServer, request: &Value) -> Vec<f64> {
    let answer = server.ask("/embeddings", request).await;
    let values = answer["embedding"].as_array().unwrap();
    values.iter().map(|value| value.as_f64().unwrap()).collect()
}
