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

fn answer(mut request: Request<Body>) {
    request.headers_mut().insert("host", "fuzz".parse().unwrap());
    let service = &*SERVICE;
    let response = service.runtime.block_on(service.router.clone().oneshot(request)).unwrap();
    assert!(!response.status().is_server_error(), "{response:?}");
}
