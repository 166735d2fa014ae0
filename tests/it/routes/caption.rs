//! `/caption`.

use blip_server::engine::testing::fake::FakeCall;
use serde_json::json;

use crate::support::inputs::image_id;
use crate::support::{TestApp, base64, png};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_captioned_with_its_facts() {
    let app = TestApp::start();
    let file = png(1);
    let answer = app.json("/caption", &json!({"image": base64(&file)})).await;
    for stage in ["decode;dur=", "queue;dur=", "vision;dur=", "text;dur=", "total;dur="] {
        assert!(
            answer.header("server-timing").contains(stage),
            "{}",
            answer.header("server-timing")
        );
    }
    let answer = answer.ok();
    assert_eq!(answer["model"], "fake-caption");
    let image = json!({"id": image_id(&file), "width": 4, "height": 3, "format": "png"});
    assert_eq!(answer["image"], image);
    let captions = answer["captions"].as_array().unwrap();
    assert_eq!(captions.len(), 1);
    assert!(!captions[0]["text"].as_str().unwrap().is_empty());
    assert_eq!(captions[0]["finish_reason"], "stop");
    let fields: Vec<_> = captions[0].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["avg_logprob", "finish_reason", "logprob", "text", "token_count"]);
    let count = captions[0]["token_count"].as_f64().unwrap();
    let (sum, mean) = (&captions[0]["logprob"], &captions[0]["avg_logprob"]);
    assert!((sum.as_f64().unwrap() / count - mean.as_f64().unwrap()).abs() < 1e-6);
    assert!(answer.get("seed").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_written_as_the_shortest_f32() {
    let app = TestApp::start();
    let answer = app.json("/caption", &json!({"image": base64(&png(1))})).await;
    // A widened f32 would show some 17 digits.
    let digits = answer.text().split("\"avg_logprob\":-0.").nth(1).unwrap();
    let digits = digits.chars().take_while(char::is_ascii_digit).count();
    assert!(digits <= 9, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_begins_the_text_and_the_continuation_is_a_field_of_its_own() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "prompt": "A Cat"});
    let answer = app.json("/caption", &request).await.ok();
    let caption = &answer["captions"][0];
    let (text, continuation) =
        (caption["text"].as_str().unwrap(), caption["continuation"].as_str().unwrap());
    assert!(text.starts_with("a cat"), "{text}");
    assert_eq!(text.strip_prefix("a cat").unwrap().trim_start(), continuation);
}

#[tokio::test(flavor = "multi_thread")]
async fn beams_give_as_many_captions_as_asked() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "num_beams": 4, "num_return_sequences": 3});
    let answer = app.json("/caption", &request).await.ok();
    assert_eq!(answer["captions"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_reports_its_seed_and_repeats_with_it() {
    let app = TestApp::start();
    let mut request =
        json!({"image": base64(&png(1)), "do_sample": true, "num_return_sequences": 2});
    let drawn = app.json("/caption", &request).await.ok();
    let seed = drawn["seed"].as_u64().unwrap();
    assert!(seed < 1 << 53);
    request["seed"] = json!(seed);
    assert_eq!(app.json("/caption", &request).await.ok(), drawn);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_sent_before_is_named_by_its_id() {
    let app = TestApp::start();
    let first = app.json("/caption", &json!({"image": base64(&png(7))})).await.ok();
    let id = &first["image"]["id"];
    assert_eq!(*id, image_id(&png(7)));
    assert_eq!(app.json("/caption", &json!({"image": id})).await.ok(), first);
    // Vision features are cached as well: the image was encoded once.
    assert_eq!(app.metrics.images_encoded_total.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_new_tokens_ends_a_text_by_length() {
    let app = TestApp::start();
    app.control.set_text_length(30);
    let request = json!({"image": base64(&png(1)), "max_new_tokens": 5});
    let answer = app.json("/caption", &request).await.ok();
    assert_eq!(answer["captions"][0]["finish_reason"], "length");
    assert_eq!(answer["captions"][0]["token_count"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_conflict_of_parameters_is_a_400_at_its_field() {
    let app = TestApp::start();
    let image = base64(&png(1));
    let cases = [
        (json!({"temperature": 0.5}), "temperature"),
        (json!({"top_k": 5}), "top_k"),
        (json!({"top_p": 0.5}), "top_p"),
        (json!({"seed": 1}), "seed"),
        (json!({"length_penalty": 2}), "length_penalty"),
        (json!({"early_stopping": true}), "early_stopping"),
        (json!({"min_p": 0.1}), "min_p"),
        (json!({"typical_p": 0.9}), "typical_p"),
        (json!({"epsilon_cutoff": 0.01}), "epsilon_cutoff"),
        (json!({"eta_cutoff": 0.01}), "eta_cutoff"),
        (json!({"renormalize_logits": true}), "renormalize_logits"),
        (json!({"renormalize_logits": true, "do_sample": true}), "renormalize_logits"),
        (json!({"min_p": 1.1, "do_sample": true}), "min_p"),
        (json!({"typical_p": 0, "do_sample": true}), "typical_p"),
        (json!({"epsilon_cutoff": 1, "do_sample": true}), "epsilon_cutoff"),
        (json!({"eta_cutoff": -0.1, "do_sample": true}), "eta_cutoff"),
        (json!({"bad_words": "cat"}), "bad_words"),
        (json!({"bad_words": []}), "bad_words"),
        (json!({"bad_words": ["cat", ""]}), "bad_words[1]"),
        (json!({"bad_words": ["cat", "\u{200b}"]}), "bad_words[1]"),
        (json!({"bad_words": vec!["cat"; 129]}), "bad_words"),
        (json!({"stop_strings": vec!["cat"; 17]}), "stop_strings"),
        (json!({"exponential_decay_length_penalty": [5]}), "exponential_decay_length_penalty"),
        (
            json!({"exponential_decay_length_penalty": [-1, 1.1]}),
            "exponential_decay_length_penalty[0]",
        ),
        (
            json!({"exponential_decay_length_penalty": [5, 0]}),
            "exponential_decay_length_penalty[1]",
        ),
        (json!({"early_stopping": "sometimes"}), "early_stopping"),
        (json!({"num_beams": 2, "do_sample": true}), "num_beams"),
        (json!({"num_return_sequences": 2}), "num_return_sequences"),
        (json!({"num_beams": 2, "num_return_sequences": 3}), "num_return_sequences"),
        (json!({"min_new_tokens": 21}), "min_new_tokens"),
        (json!({"max_new_tokens": 0}), "max_new_tokens"),
        (json!({"max_new_tokens": 65}), "max_new_tokens"),
        (json!({"num_beams": 9}), "num_beams"),
        (json!({"seed": 9_007_199_254_740_992_u64, "do_sample": true}), "seed"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": "a\u{0}"}), "prompt"),
        (json!({"beams": 1}), "beams"),
    ];
    for (mut request, field) in cases {
        request["image"] = json!(image);
        let answer = app.json("/caption", &request).await;
        assert_eq!(answer.refused_field(400, "invalid_request"), field, "{}", answer.text());
    }
    assert!(app.control.log().is_empty(), "nothing refused reaches the model");
    assert_eq!(app.metrics.image_pixels.get_sample_count(), 0, "nothing refused is decoded");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_image_there_is_nothing_to_describe() {
    let app = TestApp::start();
    assert_eq!(
        app.json("/caption", &json!({})).await.refused_field(400, "invalid_request"),
        "image"
    );
    assert_eq!(
        app.raw("/caption", "", Vec::new()).await.refused_field(400, "invalid_request"),
        "image"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_ranked_and_nothing_is_generated() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "candidates": ["a cat", "two dogs", "night"]});
    let answer = app.json("/caption", &request).await.ok();
    assert_eq!(answer["captions"], json!([]));
    let ranking = answer["ranking"].as_array().unwrap();
    let number = |index: usize, field: &str| ranking[index][field].as_f64().unwrap();
    assert!((1..3).all(|index| number(index - 1, "logprob") >= number(index, "logprob")));
    assert!(((0..3).map(|index| number(index, "probability")).sum::<f64>() - 1.0).abs() < 1e-6);
    assert!((number(0, "loss") + number(0, "avg_logprob")).abs() < 1e-9);
    let fields: Vec<_> = ranking[0].as_object().unwrap().keys().collect();
    let expected = ["avg_logprob", "logprob", "loss", "probability", "text", "token_count"];
    assert_eq!(fields, expected);
    let steps = app.control.log().into_iter().filter(|unit| unit.call == FakeCall::Step).count();
    assert_eq!(steps, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_listed_on_request_and_add_up() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "tokens": true});
    let caption = app.json("/caption", &request).await.ok()["captions"][0].clone();
    let tokens = caption["tokens"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, caption["token_count"].as_u64().unwrap());
    let sum: f64 = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    assert!((sum - caption["logprob"].as_f64().unwrap()).abs() < 1e-5);
    assert!(tokens.iter().all(|token| token["id"].is_u64() && token["text"].is_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_caption_has_a_match_and_the_best_comes_first() {
    let app = TestApp::start();
    for verify in [json!(true), json!("fake-retrieval")] {
        let request = json!({
            "image": base64(&png(1)), "num_beams": 4, "num_return_sequences": 4, "verify": verify,
        });
        let answer = app.json("/caption", &request).await.ok();
        let captions = answer["captions"].as_array().unwrap().iter();
        let matches: Vec<f64> = captions.map(|c| c["match"].as_f64().unwrap()).collect();
        assert!(matches.len() == 4 && matches.is_sorted_by(|a, b| a >= b), "{matches:?}");
    }
    let batch =
        json!({"inputs": [{"image": base64(&png(1)), "verify": true}, {"image": base64(&png(2))}]});
    let answer = app.json("/caption/batch", &batch).await.ok();
    assert!(answer["results"][0]["captions"][0]["match"].is_f64());
    assert!(answer["results"][1]["captions"][0].get("match").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_combinations_of_the_new_fields_are_refused_at_their_field() {
    let app = TestApp::start();
    let cases = [
        (json!({"candidates": []}), 400, "invalid_request", "candidates"),
        (json!({"candidates": ["a", "a"]}), 400, "invalid_request", "candidates[1]"),
        (json!({"candidates": ["a"], "prompt": "b"}), 400, "invalid_request", "prompt"),
        (json!({"candidates": ["a"], "num_beams": 3}), 400, "invalid_request", "num_beams"),
        (json!({"candidates": ["a"], "verify": true}), 400, "invalid_request", "verify"),
        (json!({"candidates": ["a"], "stream": true}), 400, "invalid_request", "stream"),
        (json!({"verify": true, "stream": true}), 400, "invalid_request", "stream"),
        (json!({"verify": 1}), 400, "invalid_request", "verify"),
        (json!({"verify": "other"}), 404, "model_not_found", "verify"),
        (json!({"verify": "fake-clip"}), 422, "score_not_available", "verify"),
    ];
    for (mut request, status, code, field) in cases {
        request["image"] = json!(base64(&png(1)));
        let answer = app.json("/caption", &request).await;
        assert_eq!(answer.refused_field(status, code), field, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_has_a_weight_for_each_patch_and_token() {
    let app = TestApp::start();
    let request = json!({"image": base64(&png(1)), "explain": true});
    let caption = app.json("/caption", &request).await.ok()["captions"][0].clone();
    let explanation = &caption["explanation"];
    assert_eq!((&explanation["grid"], &explanation["layers"]), (&json!([2, 2]), &json!([0, 1, 2])));
    let tokens = explanation["tokens"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, caption["token_count"].as_u64().unwrap());
    assert!(tokens.iter().all(|token| token["weights"].as_array().unwrap().len() == 4));
    let request = json!({"image": base64(&png(1)), "question": "he was", "explain": true, "explain_layers": [2]});
    let answer = app.json("/vqa", &request).await.ok()["answers"][0].clone();
    assert_eq!(answer["explanation"]["layers"], json!([2]));
    let tokens = answer["explanation"]["tokens"].as_array().unwrap();
    assert_eq!(
        (&tokens[0]["text"], &tokens[tokens.len() - 1]["text"]),
        (&json!("[CLS]"), &json!("[SEP]"))
    );
    assert!(tokens[0].get("logprob").is_none());
    let cases = [
        (json!({"explain": true, "num_beams": 2}), 400, "invalid_request", "explain"),
        (json!({"explain": true, "candidates": ["a"]}), 400, "invalid_request", "explain"),
        (json!({"explain_layers": [1]}), 400, "invalid_request", "explain_layers"),
        (
            json!({"explain": true, "explain_layers": [1, 1]}),
            400,
            "invalid_request",
            "explain_layers[1]",
        ),
        (
            json!({"explain": true, "explain_layers": [3]}),
            422,
            "score_not_available",
            "explain_layers[0]",
        ),
    ];
    for (mut request, status, code, field) in cases {
        request["image"] = json!(base64(&png(1)));
        let answer = app.json("/caption", &request).await;
        assert_eq!(answer.refused_field(status, code), field, "{}", answer.text());
    }
}
