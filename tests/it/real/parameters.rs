//! Generation parameters that consist of words, on real models: in every encoding, in a batch and in a stream.

use serde_json::{Value, json};

use super::server::{RealServer, image};
use super::{photo, reference};

const CHECKPOINT: &str = "caption-talkative";

/// A golden of `reference/parameters.json`, with its photo and prompt as a request.
fn golden(name: &str) -> (Value, Value) {
    let goldens = reference("parameters")[CHECKPOINT].as_array().unwrap().clone();
    let golden = goldens.into_iter().find(|golden| golden["name"] == name).unwrap();
    let mut request = golden["params"].clone();
    request["image"] = image(golden["photo"].as_str().unwrap());
    if golden["prompt"].is_string() {
        request["prompt"] = golden["prompt"].clone();
    }
    (golden, request)
}

/// The parameters of a golden as form fields: an item of a list is a field of its own.
fn fields(golden: &Value) -> Vec<(String, String)> {
    let mut all = golden["params"].as_object().unwrap().clone();
    all.insert("prompt".to_owned(), golden["prompt"].clone());
    let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
    let mut fields = Vec::new();
    for (name, value) in all {
        if let Value::Array(items) = &value {
            fields.extend(items.iter().map(|item| (name.clone(), text(item))));
        } else if !value.is_null() {
            fields.push((name, text(&value)));
        }
    }
    fields
}

fn multipart(golden: &Value) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields(golden) {
        let head = "--b\r\ncontent-disposition: form-data; name=";
        body.extend(format!("{head}\"{name}\"\r\n\r\n{value}\r\n").into_bytes());
    }
    let head = "--b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n";
    body.extend(head.as_bytes());
    body.extend(photo(golden["photo"].as_str().unwrap()));
    body.extend(b"\r\n--b--\r\n");
    body
}

fn raw_path(golden: &Value) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(fields(golden));
    format!("/caption?{}", query.finish())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_words_and_the_decay_are_the_same_in_every_encoding() {
    let server = RealServer::start(&[CHECKPOINT], &[]).await;
    for name in ["bad-words", "bad-phrase", "decay", "stop-strings", "beams-everything"] {
        let (golden, request) = golden(name);
        let expected = server.ask("/caption", &request).await;
        assert_eq!(expected["captions"][0]["text"], golden["sequences"][0]["text"], "{name}");
        let form = ("multipart/form-data; boundary=b", multipart(&golden));
        assert_eq!(server.send("/caption", form).await, expected, "{name}");
        let raw = ("image/png", photo(golden["photo"].as_str().unwrap()));
        assert_eq!(server.send(&raw_path(&golden), raw).await, expected, "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inputs_of_a_batch_have_their_own_words() {
    let server = RealServer::start(&[CHECKPOINT], &[]).await;
    let names = ["bad-word", "stop-string", "decay", "stop-string-beams", "renormalize-penalty"];
    let goldens = names.map(golden);
    let inputs: Vec<&Value> = goldens.iter().map(|(_, request)| request).collect();
    let answer = server.ask("/caption/batch", &json!({"inputs": inputs})).await;
    for (index, (golden, _)) in goldens.iter().enumerate() {
        let text = &answer["results"][index]["captions"][0]["text"];
        assert_eq!(*text, golden["sequences"][0]["text"], "{}", golden["name"]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_a_stream_and_stays_in_its_text() {
    let server = RealServer::start(&[CHECKPOINT], &[]).await;
    for name in ["stop-string", "stop-string-inside", "stop-string-across-words"] {
        let (golden, mut request) = golden(name);
        request["stream"] = json!(true);
        let body = server.post("/caption", &request).await.text().await.unwrap();
        let data = |event: &str| -> Vec<Value> {
            let events =
                body.split("\n\n").filter(|text| text.contains(&format!("event: {event}\n")));
            let data = events.filter_map(|text| text.split("data: ").nth(1));
            data.map(|json| serde_json::from_str(json).unwrap()).collect()
        };
        let expected = &golden["sequences"][0];
        let deltas = data("delta");
        let text: String = deltas.iter().map(|delta| delta["text"].as_str().unwrap()).collect();
        assert_eq!(text, expected["text"], "{name}");
        let tokens = deltas.iter().map(|delta| delta["tokens"].as_array().unwrap().len());
        assert_eq!(tokens.sum::<usize>(), expected["new_ids"].as_array().unwrap().len(), "{name}");
        let done = &data("done")[0]["captions"][0];
        assert_eq!((&done["text"], &done["finish_reason"]), (&expected["text"], &json!("stop")));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cutoffs_that_leave_one_token_give_the_greedy_text() {
    let server = RealServer::start(&[CHECKPOINT], &[]).await;
    let greedy = server.ask("/caption", &json!({"image": image("chelsea")})).await;
    for (name, value) in [("min_p", 1.0), ("epsilon_cutoff", 0.999)] {
        let mut request = json!({"image": image("chelsea"), "do_sample": true, "seed": 5});
        request[name] = json!(value);
        let answer = server.ask("/caption", &request).await;
        assert_eq!(answer["captions"], greedy["captions"], "{name}");
    }
    // Other cutoffs leave more tokens; the same seed repeats their text.
    let request = json!({"image": image("chelsea"), "do_sample": true, "seed": 5, "top_k": 0, "typical_p": 0.9, "eta_cutoff": 1e-3});
    let answer = server.ask("/caption", &request).await;
    assert_eq!(server.ask("/caption", &request).await, answer);
    server.stop().await;
}
