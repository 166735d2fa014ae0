//! Request bodies and query strings, through the whole service on its scripted backend: no refusal is a failure.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use blip_server::engine::testing::fake::{FakeBackend, models};
use blip_server::engine::{Engine, EngineContext, EngineSettings};
use blip_server::http::{HttpSettings, HttpState, Model, Models, Services, router};
use blip_server::images::{Images, ImagesSettings};
use blip_server::input::{InputSettings, Tokenizer};
use blip_server::telemetry::metrics::Metrics;
use tokio::runtime::Runtime;
use tower::ServiceExt;

const PATHS: [&str; 8] = [
    "/caption",
    "/caption/batch",
    "/vqa",
    "/vqa/batch",
    "/similarity",
    "/similarity/batch",
    "/embeddings",
    "/embeddings/batch",
];

/// The routes of other APIs that read a body.
const COMPATIBLE: [&str; 11] = [
    "/v1/chat/completions",
    "/v1/embeddings",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/hf/image-to-text",
    "/hf/visual-question-answering",
    "/hf/zero-shot-image-classification",
    "/hf/feature-extraction",
];

/// The service, and the engine that must outlive it.
struct Service {
    runtime: Runtime,
    router: Router,
    _engine: Engine,
}

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let (backend, _) = FakeBackend::new(models());
    let input = InputSettings {
        max_pixels: 1 << 20,
        max_decoded_bytes: 16 << 20,
        ..InputSettings::default()
    };
    let images =
        Images::start(&ImagesSettings::default(), input.clone(), Arc::clone(&metrics)).unwrap();
    let json = include_str!("../../fixtures/base/tokenizer.json");
    let config = include_str!("../../fixtures/base/tokenizer_config.json");
    let tokenizer = Tokenizer::from_texts("tokenizer.json".as_ref(), json, config, &input).unwrap();
    let tokenizer = Arc::new(tokenizer);
    let models =
        models().into_iter().map(|info| Model { info, tokenizer: Some(Arc::clone(&tokenizer)) });
    let settings = HttpSettings { input, ..HttpSettings::default() };
    let state = HttpState::new(settings, Arc::clone(&metrics));
    let context = EngineContext::new(metrics, Arc::clone(state.lifecycle()));
    let engine = Engine::start(backend, EngineSettings::default(), context).unwrap();
    state.set_ready(Services {
        engine: engine.handle(),
        images,
        fetcher: None,
        models: Models::new(models.collect()),
        cpu_isa: "fuzz".to_owned(),
    });
    Service { runtime, router: router(state), _engine: engine }
});

/// The first byte picks the path, the rest is the body.
pub(crate) fn json(data: &[u8]) {
    send(data, "application/json");
}

/// As [`json`]; the boundary is `b`.
pub(crate) fn multipart(data: &[u8]) {
    send(data, "multipart/form-data; boundary=b");
}

/// The first byte picks a route of another API, the rest is the body. An error has the format of that API, and an answer
/// in one piece is JSON.
pub(crate) fn compatible(data: &[u8]) {
    let Some((path, body)) = data.split_first() else { return };
    let path = COMPATIBLE[usize::from(*path) % COMPATIBLE.len()];
    let (status, content_type, body) =
        whole(Request::post(path).body(Body::from(body.to_vec())).unwrap());
    if !content_type.starts_with("application/json") {
        assert_eq!(status, 200, "{path}");
        return;
    }
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let error = &json["error"];
    match (status, path.starts_with("/v1/")) {
        (200, _) => assert!(error.is_null(), "{path}: {json}"),
        (_, true) => assert!(error["message"].is_string() && error["code"].is_string(), "{json}"),
        (_, false) => assert!(error.is_string(), "{json}"),
    }
}

/// The body of a bulk request. Each line is answered exactly once.
pub(crate) fn bulk(data: &[u8]) {
    let request = Request::post("/bulk").body(Body::from(data.to_vec())).unwrap();
    let (status, _, body) = whole(request);
    assert_eq!(status, 200);
    let lines = data.split(|&byte| byte == b'\n');
    let lines = lines.filter(|line| !line.iter().all(u8::is_ascii_whitespace)).count();
    let mut answers: Vec<serde_json::Value> = body
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let summary = answers.pop().unwrap();
    assert_eq!((&summary["done"], answers.len()), (&lines.into(), lines));
    let failed = answers.iter().filter(|answer| answer["status"] != 200).count();
    assert_eq!(summary["failed"], failed);
    for answer in answers {
        let is_named = answer.get("id").is_some() != answer.get("line").is_some();
        let is_answered = answer.get("result").is_some() != answer.get("error").is_some();
        assert!(is_named && is_answered, "{answer}");
    }
}

/// The first byte picks the path, the rest is the query string beside a raw image.
pub(crate) fn query(data: &[u8]) {
    let Some((path, query)) = data.split_first() else { return };
    let mut uri = format!("{}?", PATHS[usize::from(*path) % PATHS.len()]);
    for &byte in query.iter().take(8192) {
        match byte {
            b'%' | b'&' | b'=' | b'+' | b'-' | b'.' | b'_' => uri.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            byte => write!(uri, "%{byte:02x}").unwrap(),
        }
    }
    let picture: &[u8] = include_bytes!("../../fixtures/images/one-pixel.png");
    answer(Request::post(uri).body(Body::from(picture)).unwrap());
}

fn send(data: &[u8], content_type: &str) {
    let Some((path, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*path) % PATHS.len()];
    let request = Request::post(path).header("content-type", content_type);
    answer(request.body(Body::from(body.to_vec())).unwrap());
}

fn answer(request: Request<Body>) {
    let service = &*SERVICE;
    let response = service.runtime.block_on(open(request));
    assert!(!response.status().is_server_error(), "{response:?}");
}

/// Sends a request and reads the whole answer: its status, content type and body.
fn whole(request: Request<Body>) -> (u16, String, Vec<u8>) {
    let service = &*SERVICE;
    service.runtime.block_on(async {
        let response = open(request).await;
        assert!(!response.status().is_server_error(), "{response:?}");
        let content_type = response.headers().get("content-type");
        let content_type = content_type.map_or("", |value| value.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, content_type, body.to_vec())
    })
}

async fn open(mut request: Request<Body>) -> axum::http::Response<Body> {
    request.headers_mut().insert("host", "fuzz".parse().unwrap());
    SERVICE.router.clone().oneshot(request).await.unwrap()
}
