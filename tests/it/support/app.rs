//! The whole service without a socket: the real router, worker and decoding pool on a scripted backend.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use blip_server::engine::testing::fake::{FakeBackend, FakeControl, models};
use blip_server::engine::{Engine, EngineContext, EngineHandle, EngineSettings};
use blip_server::fetch::testing::Hooks;
use blip_server::fetch::{FetchSettings, Fetcher};
use blip_server::http::{HttpSettings, HttpState, Model, Models, Services, router};
use blip_server::images::{Images, ImagesSettings};
use blip_server::input::{InputSettings, Tokenizer};
use blip_server::task::ModelInfo;
use blip_server::telemetry::metrics::Metrics;
use blip_server::telemetry::trace::Tracer;
use serde_json::Value;
use tower::ServiceExt;

use super::Answer;
use super::inputs::{BOUNDARY, Multipart, write_vocabulary};

/// Longer than anything in these tests takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a test may change.
pub(crate) struct TestConfig {
    pub(crate) http: HttpSettings,
    pub(crate) engine: EngineSettings,
    pub(crate) images: ImagesSettings,
    pub(crate) models: Vec<ModelInfo>,
    /// Images by URL, as the hooks say.
    pub(crate) fetch: Option<(FetchSettings, Hooks)>,
    pub(crate) clean_up: bool,
    /// Traces, as they are exported. Its counts are among `metrics`.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) metrics: Option<Arc<Metrics>>,
    /// A broken backend is built anew.
    pub(crate) rebuild: bool,
}

/// A running service. Dropping it fails the test when something is still held.
pub(crate) struct TestApp {
    /// The scripted backend's other side.
    pub(crate) control: FakeControl,
    /// Every count.
    pub(crate) metrics: Arc<Metrics>,
    /// The router's state.
    pub(crate) state: HttpState,
    /// The service.
    pub(crate) router: Router,
    /// The engine behind it.
    pub(crate) handle: EngineHandle,
    engine: Option<Engine>,
}

impl TestApp {
    /// A service with the default settings and one model of each class.
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    /// A service with other settings.
    pub(crate) fn with(change: impl FnOnce(&mut TestConfig)) -> Self {
        let mut config = TestConfig {
            http: HttpSettings::default(),
            engine: EngineSettings::default(),
            images: ImagesSettings::default(),
            models: models(),
            fetch: None,
            clean_up: false,
            tracer: None,
            metrics: None,
            rebuild: false,
        };
        change(&mut config);
        config.http.validate().expect("valid settings");
        let metrics = config.metrics.take();
        let metrics = metrics.unwrap_or_else(|| Arc::new(Metrics::try_new().expect("metrics")));
        let (backend, control) = FakeBackend::new(config.models.clone());
        let (http, tracer) = (config.http.clone(), config.tracer.take());
        let state = HttpState::with_tracer(http, Arc::clone(&metrics), tracer);
        let context = EngineContext::new(Arc::clone(&metrics), Arc::clone(state.lifecycle()));
        let settings = config.engine;
        let engine = if config.rebuild {
            let (models, control) = (config.models.clone(), control.clone());
            let rebuild = Box::new(move || Ok(FakeBackend::on(models.clone(), &control)));
            Engine::start_supervised(backend, rebuild, settings, context)
        } else {
            Engine::start(backend, settings, context)
        };
        let engine = engine.expect("an engine");
        let input = config.http.input.clone();
        let images =
            Images::start(&config.images, input.clone(), Arc::clone(&metrics)).expect("a pool");
        let fetcher = config.fetch.map(|(settings, hooks)| {
            let max_bytes = input.max_image_bytes;
            Fetcher::with_hooks(&settings, max_bytes, Arc::clone(&metrics), hooks)
                .expect("a fetcher")
        });
        let tokenizer = Arc::new(tokenizer(&input, config.clean_up));
        let models = config
            .models
            .into_iter()
            .map(|info| Model { info, tokenizer: Some(Arc::clone(&tokenizer)) });
        state.set_ready(Services {
            engine: engine.handle(),
            images,
            fetcher,
            models: Models::new(models.collect()),
            cpu_isa: "test".to_owned(),
        });
        let router = router(state.clone());
        let handle = engine.handle();
        Self { control, metrics, state, router, handle, engine: Some(engine) }
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::read(self.open(request).await).await
    }

    /// Sends a request; the body of the answer is left unread.
    pub(crate) async fn open(&self, mut request: Request<Body>) -> Response<Body> {
        // Every client of HTTP/1.1 sends one; a test that is about it writes its own.
        request.headers_mut().entry("host").or_insert_with(|| "localhost".parse().unwrap());
        self.router.clone().oneshot(request).await.expect("the router is infallible")
    }

    /// A GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// A POST of JSON.
    pub(crate) async fn json(&self, path: &str, body: &Value) -> Answer {
        self.send(json_request(path, body)).await
    }

    /// A POST of JSON that need not be JSON.
    pub(crate) async fn json_text(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_owned())).unwrap()).await
    }

    /// A POST of parts.
    pub(crate) async fn multipart(&self, path: &str, parts: Multipart) -> Answer {
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = Request::post(path).header("content-type", content_type);
        self.send(request.body(Body::from(parts.finish())).unwrap()).await
    }

    /// A POST of a raw body of this type ("" sends none).
    pub(crate) async fn raw(&self, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let mut request = Request::post(path);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// Waits until a condition holds; used only where the service tells no other way.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "never: {what}");
            tokio::task::yield_now().await;
        }
    }

    /// Gauges of things in progress.
    fn in_progress(&self) -> [(&'static str, i64); 5] {
        let metrics = &self.metrics;
        [
            ("requests in flight", metrics.http_requests_in_flight.get()),
            ("rows", metrics.queue_rows.get()),
            ("bytes", metrics.queue_bytes.get()),
            ("fetching permits", metrics.fetch_permits_in_use.get()),
            ("decoding permits", metrics.decode_permits_in_use.get()),
        ]
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.control.release();
        if std::thread::panicking() {
            return;
        }
        let start = Instant::now();
        while self.in_progress().iter().any(|(_, held)| *held != 0) && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        assert_eq!(
            self.in_progress().map(|(name, held)| (name, held)).iter().find(|(_, held)| *held != 0),
            None
        );
        assert_eq!(self.control.open_groups(), 0, "groups left in the backend");
        if let Some(engine) = self.engine.take() {
            engine.join();
        }
    }
}

/// A POST of JSON.
pub(crate) fn json_request(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.header("host", "blip.test").body(Body::from(body.to_string())).unwrap()
}

fn tokenizer(settings: &InputSettings, clean_up: bool) -> Tokenizer {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write_vocabulary(directory.path());
    let config = format!("{{\"clean_up_tokenization_spaces\": {clean_up}}}");
    std::fs::write(directory.path().join("tokenizer_config.json"), config)
        .expect("a writable directory");
    Tokenizer::load(directory.path(), settings).expect("a tokenizer")
}
