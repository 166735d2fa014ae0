//! Tests of the router: a panic in a handler, and an endpoint that is named only in the list of endpoints.
//!
//! `routes::classify` is an endpoint on an existing task. These tests serve it beside the four first endpoints, and check
//! that it is served, documented, counted and limited like the others, although nothing but the list names it.

use std::path::Path;

use super::*;
use axum::body::Body;
use axum::http::Request;
use axum::http::request::Builder;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::engine::testing::fake::{self, FakeBackend};
use crate::engine::{Engine, EngineContext, EngineSettings};
use crate::http::openapi::EXAMPLE_IMAGE;
use crate::http::routes::classify;
use crate::http::{ApiKey, AuthSettings, HttpSettings, Model, Models, RateLimitSettings, Services};
use crate::images::{Images, ImagesSettings};
use crate::input::Tokenizer;
use crate::telemetry::metrics::Metrics;

/// The endpoints of the four kinds of tasks, and `classify`.
const ONE_MORE: EndpointList = &[
    caption::endpoint,
    vqa::endpoint,
    similarity::endpoint,
    embeddings::endpoint,
    classify::endpoint,
];

async fn fall_over() -> &'static str {
    panic!("a test panics on purpose")
}

#[tokio::test]
async fn a_panic_in_a_handler_is_a_500_with_a_body_and_is_counted() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let state = HttpState::new(HttpSettings::default(), Arc::clone(&metrics));
    let router = with_common_layers(Router::new().route("/panic", get(fall_over)), state);
    let request = Request::get("/panic").header("host", "x").header("x-request-id", "p-1");
    let request = request.body(Body::empty());
    let response = router.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 500);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = std::str::from_utf8(&body).unwrap();
    assert!(body.contains(r#""code":"internal_error""#), "{body}");
    assert!(body.contains(r#""request_id":"p-1""#), "{body}");
    assert!(!body.contains("on purpose"), "{body}");
    assert_eq!(metrics.panics_total.with_label_values(&["handler"]).get(), 1);
    let labels = ["/panic", "GET", "500", "internal_error"];
    assert_eq!(metrics.http_requests_total.with_label_values(&labels).get(), 1);
    assert_eq!(metrics.http_requests_in_flight.get(), 0);
}

/// A server with the endpoints of [`ONE_MORE`] and a scripted backend.
struct TestServer {
    router: Router,
    metrics: Arc<Metrics>,
    engine: Engine,
}

impl TestServer {
    fn start(change: impl FnOnce(&mut HttpSettings)) -> Self {
        let state = new_state(change);
        let engine = load_models(&state);
        let metrics = Arc::clone(state.metrics());
        Self { router: router_of(ONE_MORE, state), metrics, engine }
    }

    /// Sends a request. Returns the status and the body of the response.
    async fn send(&self, request: Builder, body: Vec<u8>) -> (u16, Value) {
        let request = request.header("host", "x").body(Body::from(body)).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn json(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request, body.to_string().into_bytes()).await
    }

    async fn multipart(&self, path: &str, fields: &[(&str, &str)]) -> (u16, Value) {
        let parts = fields.iter().map(|(name, value)| {
            format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        });
        let body = parts.collect::<String>() + "--b--\r\n";
        let request = Request::post(path).header("content-type", "multipart/form-data; boundary=b");
        self.send(request, body.into_bytes()).await
    }

    fn items(&self, code: &str) -> u64 {
        let labels = ["classify", "fake-retrieval", code];
        self.metrics.items_total.with_label_values(&labels).get()
    }

    fn stop(self) {
        drop(self.router);
        self.engine.join();
    }
}

fn new_state(change: impl FnOnce(&mut HttpSettings)) -> HttpState {
    let mut settings = HttpSettings::default();
    change(&mut settings);
    HttpState::new(settings, Arc::new(Metrics::try_new().unwrap()))
}

fn load_models(state: &HttpState) -> Engine {
    let metrics = || Arc::clone(state.metrics());
    let (backend, _) = FakeBackend::new(fake::models());
    let context = EngineContext::new(metrics(), Arc::clone(state.lifecycle()));
    let engine = Engine::start(backend, EngineSettings::default(), context).unwrap();
    let input = state.settings().input.clone();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/retrieval");
    let tokenizer = Arc::new(Tokenizer::load(&checkpoint, &input).unwrap());
    let models = fake::models().into_iter();
    let models = models.map(|info| Model { info, tokenizer: Some(Arc::clone(&tokenizer)) });
    state.set_ready(Services {
        engine: engine.handle(),
        images: Images::start(&ImagesSettings::default(), input, metrics()).unwrap(),
        fetcher: None,
        models: Models::new(models.collect()),
        cpu_isa: "test".to_owned(),
    });
    engine
}

fn labels(answer: &Value) -> Vec<&str> {
    let labels = answer["labels"].as_array().unwrap_or_else(|| panic!("{answer}"));
    labels.iter().map(|label| label["label"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_endpoint_is_served_in_every_encoding_and_in_batches() {
    let server = TestServer::start(|_| ());
    let request =
        json!({"image": EXAMPLE_IMAGE, "labels": ["cat", "dog", "car"], "template": "one {}"});
    let (status, answer) = server.json("/classify", &request).await;
    assert_eq!((status, &answer["model"]), (200, &"fake-retrieval".into()), "{answer}");
    assert_eq!(labels(&answer).len(), 3);
    let fields = [
        ("image", EXAMPLE_IMAGE),
        ("labels", "cat"),
        ("labels", "dog"),
        ("labels", "car"),
        ("template", "one {}"),
    ];
    assert_eq!(server.multipart("/classify", &fields).await, (200, answer.clone()));
    let (status, raw) = server
        .send(
            Request::post("/classify?labels=cat&labels=dog&labels=car&template=one%20%7B%7D")
                .header("content-type", "application/octet-stream"),
            base64_bytes(EXAMPLE_IMAGE),
        )
        .await;
    assert_eq!((status, raw), (200, answer.clone()));

    let batch = json!({
        "inputs": [{"image": EXAMPLE_IMAGE}, {"image": EXAMPLE_IMAGE, "labels": ["boat"]}, {"image": "bm8gaW1hZ2U="}],
        "labels": ["cat", "dog", "car"],
        "template": "one {}",
    });
    let (status, answers) = server.json("/classify/batch", &batch).await;
    assert_eq!((status, &answers["failed"]), (200, &1.into()), "{answers}");
    assert_eq!(labels(&answers["results"][0]), labels(&answer));
    assert_eq!(labels(&answers["results"][1]), ["boat"]);
    assert_eq!(answers["results"][2]["error"]["errors"][0]["field"], "inputs[2].image");
    server.stop();
}

fn base64_bytes(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[test]
fn a_new_endpoint_is_documented_like_the_others() {
    let strict = documented(ONE_MORE, CompatSettings::default()).strict(&Limits::default());
    let strict = serde_json::to_value(strict).unwrap();
    let operation = &strict["paths"]["/classify"]["post"];
    let statuses = |path: &str| -> Vec<String> {
        let responses = &strict["paths"][path]["post"]["responses"];
        responses.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(statuses("/classify"), statuses("/caption"));
    assert_eq!(statuses("/classify/batch"), statuses("/caption/batch"));
    assert_eq!(operation["security"], strict["paths"]["/caption"]["post"]["security"]);

    let schemas = &strict["components"]["schemas"];
    let request = &schemas["ClassifyRequest"];
    assert_eq!(request["required"], json!(["image", "labels"]));
    assert_eq!(request["allOf"].as_array().map(Vec::len), Some(1));
    let distinct = |schema: &str| &schemas[schema]["properties"]["labels"]["uniqueItems"];
    assert_eq!(
        ["ClassifyRequest", "ClassifyInput", "ClassifyBatchRequest"].map(distinct),
        [&Value::Bool(true), &Value::Bool(true), &Value::Null]
    );

    let link = |path: &str, name: &str| {
        strict["paths"][path]["post"]["responses"]["200"]["links"][name].clone()
    };
    for path in ["/caption", "/vqa", "/classify"] {
        assert_eq!(link(path, "classify")["operationId"], "classify_image", "{path}");
        assert_eq!(link(path, "ask")["operationId"], "answer_question", "{path}");
    }
    let body = json!({"image": "$response.body#/image/id", "labels": ["a cat", "a dog"]});
    assert_eq!(link("/caption", "classify")["requestBody"], body);

    let plain = documented(ONE_MORE, CompatSettings::default()).plain(&Limits::default());
    let plain = serde_json::to_value(plain).unwrap();
    for path in ["/classify", "/classify/batch"] {
        let content = &plain["paths"][path]["post"]["requestBody"]["content"];
        let form = &content["multipart/form-data"]["schema"]["properties"];
        assert_eq!(form["template"]["example"], "a photo of {}", "{path}");
    }
}

#[tokio::test]
async fn the_served_documents_list_the_endpoints_of_the_router() {
    let server = TestServer::start(|_| ());
    for path in ["/openapi.json", "/openapi-strict.json"] {
        let (status, document) = server.send(Request::get(path), Vec::new()).await;
        assert_eq!(status, 200);
        assert_eq!(document["paths"]["/classify"]["post"]["operationId"], "classify_image");
    }
    server.stop();
}

#[test]
fn the_counters_of_a_new_endpoint_exist_before_its_first_call() {
    let series = [
        r#"blip_items_total{code="ok",model="fake-retrieval",task="classify"} 0"#,
        r#"blip_items_total{code="ok",model="fake-clip",task="classify"} 0"#,
        r#"blip_items_total{code="ok",model="fake-caption",task="caption"} 0"#,
        r#"blip_items_total{code="inference_failed",model="fake-caption",task="caption"} 0"#,
        r#"blip_items_total{code="internal_error",model="fake-clip",task="classify"} 0"#,
        r#"blip_http_requests_total{code="ok",method="POST",route="/classify",status="200"} 0"#,
        r#"blip_http_request_duration_seconds_count{route="/classify/batch"} 0"#,
    ];
    for router_first in [true, false] {
        let state = new_state(|_| ());
        let (router, engine) = if router_first {
            let router = router_of(ONE_MORE, state.clone());
            (router, load_models(&state))
        } else {
            let engine = load_models(&state);
            (router_of(ONE_MORE, state.clone()), engine)
        };
        let text = state.metrics().to_text().unwrap();
        for line in series {
            assert!(text.contains(line), "{line}, router first: {router_first}");
        }
        assert!(!text.contains(r#"model="fake-caption",task="classify""#));
        drop((router, state));
        engine.join();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_new_endpoint_are_counted_per_route_and_per_input() {
    let server = TestServer::start(|_| ());
    let good = json!({"image": EXAMPLE_IMAGE, "labels": ["cat"]});
    let bad = json!({"image": "bm8gaW1hZ2U=", "labels": ["cat"]});
    assert_eq!(server.json("/classify", &good).await.0, 200);
    assert_eq!(server.json("/classify", &bad).await.0, 415);
    let (status, _) = server.json("/classify/batch", &json!({"inputs": [good, bad, good]})).await;
    assert_eq!(status, 200);
    assert_eq!((server.items("ok"), server.items("unsupported_image_format")), (3, 2));
    let requests = |route: &str, status: &str, code: &str| {
        let labels = [route, "POST", status, code];
        server.metrics.http_requests_total.with_label_values(&labels).get()
    };
    assert_eq!(requests("/classify", "200", "ok"), 1);
    assert_eq!(requests("/classify", "415", "unsupported_image_format"), 1);
    assert_eq!(requests("/classify/batch", "200", "ok"), 1);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_endpoint_has_the_limits_of_the_others() {
    let server = TestServer::start(|settings| {
        settings.limits.max_rows = 3;
        settings.limits.max_batch_inputs = 2;
        settings.input.max_text_bytes = 8;
    });
    let refused = |(status, problem): (u16, Value)| {
        let field = problem["errors"][0]["field"].as_str().unwrap_or_default().to_owned();
        (status, problem["code"].as_str().unwrap().to_owned(), field)
    };
    let too_large = |field: &str| (422, "batch_too_large".to_owned(), field.to_owned());
    let labels = json!({"image": EXAMPLE_IMAGE, "labels": ["a", "b", "c", "d"]});
    assert_eq!(refused(server.json("/classify", &labels).await), too_large(""));
    let input = json!({"image": EXAMPLE_IMAGE, "labels": ["a"]});
    let inputs = json!({"inputs": [input, input, input]});
    assert_eq!(refused(server.json("/classify/batch", &inputs).await), too_large("inputs"));
    // In a form, too, the path of the error names the list item, because the type of the field says that it is a list.
    let fields = [("image", EXAMPLE_IMAGE), ("labels", "cat"), ("labels", "a long label")];
    let too_long = (422, "text_too_long".to_owned(), "labels[1]".to_owned());
    assert_eq!(refused(server.multipart("/classify", &fields).await), too_long);
    let request = Request::post("/classify").header("x-request-timeout-ms", "soon");
    let request = request.header("content-type", "application/json");
    let (status, ..) = refused(server.send(request, input.to_string().into_bytes()).await);
    assert_eq!(status, 400);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_endpoint_needs_a_key_and_has_a_rate_limit() {
    let server = TestServer::start(|settings| {
        let keys = vec![ApiKey::parse("a:right-right-right-a").unwrap()];
        settings.auth = Some(AuthSettings { keys, keys_file: None, failed_attempts_per_minute: 0 });
        settings.rate_limit = Some(RateLimitSettings { requests_per_second: 1, burst: 1 });
    });
    let body = json!({"image": EXAMPLE_IMAGE, "labels": ["cat"]}).to_string().into_bytes();
    let request = || Request::post("/classify").header("content-type", "application/json");
    let with_key = || request().header("authorization", "Bearer right-right-right-a");
    assert_eq!(server.send(request(), body.clone()).await.0, 401);
    assert_eq!(server.send(with_key(), body.clone()).await.0, 200);
    assert_eq!(server.send(with_key(), body.clone()).await.0, 429);
    server.stop();
}
