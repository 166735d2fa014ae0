//! The composition root: the only folder that may use every other folder. Only `cli` calls it.
//!
//! - this file: [`App`] turns a checked configuration into a running server and shuts it down gracefully.
//! - `bar`: the progress bar for loading models.
//! - `compute`: resolves device, number format, instruction set and threads.
//! - [`mod@doctor`]: compares the settings with the machine.
//! - `descriptors`: compares the file descriptors that the settings need with the limit of the process.
//! - `loading`: resolves sources to files, and loads models and tokenizers.
//! - `local`: the service without a listener, for commands that process files.
//! - `mock`: mock models with fixed latencies, instead of loaded ones.
//! - `memory_budget`: what the settings and the weights may take of the memory, compared with its limit.
//! - `service_manager`: tells systemd, or another service manager, what the server does.
//! - `simulation`: tests of the whole service under one seed.
//! - `port`: why a port cannot be bound, and what to do.
//! - `start_error`: decides whether a checkpoint is at fault for a failed start.
//! - [`mod@bench`]: measures the models without a server.

mod bar;
pub mod bench;
mod compute;
mod descriptors;
pub mod doctor;
mod loading;
mod local;
mod memory_budget;
mod mock;
pub(crate) mod port;
mod service_manager;
#[cfg(test)]
mod simulation;
mod start_error;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
pub use crate::engine::WarmUpError;
use crate::engine::{Engine, EngineContext, EngineHandle};
use crate::fetch::Fetcher;
use crate::http::{self, Drained, HttpState, Listener, Services};
use crate::images::{Images, ImagesSettings};
use crate::platform;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{LAST_EXPORT, Tracer};
use compute::Compute;
pub use local::LocalService;
pub use mock::MockSettings;
use service_manager::Notifier;
pub use start_error::is_checkpoint_fault;

/// How long the workers may still run their last work units after all requests have been answered.
const LAST_UNIT: Duration = Duration::from_secs(2);

/// Longest time from the end of the drain timeout to the end of the process: the last responses, the last work units, and
/// the last export of traces, one after the other.
const AFTER_THE_DRAIN: Duration =
    http::LAST_ANSWERS.saturating_add(LAST_UNIT).saturating_add(LAST_EXPORT);

/// A server that is assembled but does not serve yet; [`serve`](Self::serve) runs it.
pub struct App {
    config: Config,
    metrics: Arc<Metrics>,
    state: HttpState,
    ready: CancellationToken,
    /// Settings of the mock models; `None` if the configured models are served.
    mock: Option<MockSettings>,
    /// Separate listener for operators (health, metrics, info).
    operations: Option<TcpListener>,
}

/// A worker thread ended, or hung, while requests were served. The reason has been logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread has ended or is hanging")]
pub struct WorkerEnded;

/// Checks the models in configured directories without reading their weights, so that a broken checkpoint is reported
/// before a port is bound. Weights, and models from the hub, are checked when they are loaded.
///
/// # Errors
/// The first fault found; it names the model and the file.
pub fn check_models(config: &Config) -> anyhow::Result<()> {
    loading::check(config)
}

impl App {
    /// Assembles the parts that need no model. This is cheap: it reads no file and binds no port.
    ///
    /// # Errors
    /// When the metrics cannot be registered, or the exporter of traces cannot be started.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::try_new().context("cannot register the metrics")?);
        let tracer = Tracer::start(&config.tracing, &metrics, platform::now)?;
        let state = HttpState::with_tracer(config.http.clone(), Arc::clone(&metrics), tracer);
        Ok(Self {
            config,
            metrics,
            state,
            ready: CancellationToken::new(),
            mock: None,
            operations: None,
        })
    }

    /// Serves mock models instead of the configured ones.
    #[must_use]
    pub fn with_mock(self, settings: MockSettings) -> Self {
        Self { mock: Some(settings), ..self }
    }

    /// Adds a separate listener for operators. It answers requests as long as [`serve`](Self::serve) runs.
    #[must_use]
    pub fn with_operations(self, listener: TcpListener) -> Self {
        Self { operations: Some(listener), ..self }
    }

    /// Returns the state that the HTTP handlers share. Its method `reload_files` reloads the files of API keys and TLS
    /// certificates.
    #[must_use]
    pub fn state(&self) -> &HttpState {
        &self.state
    }

    /// Returns a token that is cancelled as soon as the server is ready for requests.
    #[must_use]
    pub fn ready(&self) -> CancellationToken {
        self.ready.clone()
    }

    /// Runs the server. It answers on `listener` at once: health, metrics and documentation work, and all other
    /// requests are rejected as not ready. Then it loads the models, serves until `shutdown` is cancelled, and drains.
    ///
    /// # Errors
    /// When a model cannot be found, downloaded or loaded, the engine cannot start, or the drain timeout ended requests
    /// without an answer; [`WarmUpError`] when a loaded model cannot run inference; [`WorkerEnded`] when a worker
    /// thread ended or hung.
    pub async fn serve(
        mut self,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        descriptors::ensure(&self.config);
        let closing = CancellationToken::new();
        let operations = match self.operations.take().map(Listener::from) {
            Some(listener) => {
                let url = listener.url().context("the operations listener has no address")?;
                tracing::info!(server.operations_url = url, "operations listener on {url}");
                let (state, closing) = (self.state.clone(), closing.clone());
                let serving =
                    async move { http::serve_operations(listener, &state, closing).await };
                Some(tokio::spawn(serving))
            }
            None => None,
        };
        let tracer = self.state.tracer().cloned();
        let served = self.serve_public(listener.into(), shutdown).await;
        closing.cancel();
        if let Some(tracer) = tracer {
            // All responses have been sent. An error only means that a thread could not be created.
            let _ = tokio::task::spawn_blocking(move || tracer.shut_down()).await;
        }
        if let Some(operations) = operations {
            operations.await.context("serving the operations listener failed")?;
        }
        served?;
        tracing::info!("stopped");
        Ok(())
    }

    async fn serve_public(
        self,
        listener: Listener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let url = listener.url().context("the listener has no address")?;
        let closing = CancellationToken::new();
        let notifier = self.notifier();
        let notify = || notifier.iter().for_each(Notifier::send);
        let connections = tokio::spawn({
            let (state, closing) = (self.state.clone(), closing.clone());
            async move { http::serve(listener, http::router(state.clone()), &state, closing).await }
        });
        let engine = tokio::select! {
            engine = self.start_engine() => engine,
            () = shutdown.cancelled() => {
                self.state.set_draining();
                notify();
                closing.cancel();
                connections.await.context("serving connections failed")?;
                return Ok(());
            }
        };
        let engine = match engine {
            Ok(engine) => engine,
            Err(error) => {
                closing.cancel();
                connections.await.context("serving connections failed")?;
                return Err(error);
            }
        };
        self.ready.cancel();
        tracing::info!(server.url = url, "listening on {url}");
        notify();
        let outcome = self.run(&engine.handle(), &shutdown, &closing, &notify).await;
        notify();
        let drained = connections.await.context("serving connections failed")?;
        // On `WorkerEnded`, return here: the worker may be hung, so do not join it.
        outcome?;
        let join = tokio::task::spawn_blocking(move || engine.join());
        if let Ok(joined) = tokio::time::timeout(LAST_UNIT, join).await {
            joined.context("a worker did not end")?;
        } else {
            // All requests have been answered, so do not wait for a work unit or a backend that is being rebuilt.
            tracing::warn!("a worker is still busy; ending without waiting for it");
        }
        check_all_answered(drained)
    }

    /// Waits for `shutdown` and then drains. Returns early with an error if a worker thread ends unexpectedly or hangs.
    /// Only a restart of the process brings this worker back, so the requests of all workers fail then.
    async fn run(
        &self,
        engine: &EngineHandle,
        shutdown: &CancellationToken,
        closing: &CancellationToken,
        notify: &impl Fn(),
    ) -> Result<(), WorkerEnded> {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = engine.lost() => {
                closing.cancel();
                return Err(WorkerEnded);
            }
        }
        self.state.set_draining();
        notify();
        tokio::select! {
            biased;
            () = self.drain(engine, closing) => Ok(()),
            () = engine.lost() => {
                closing.cancel();
                Err(WorkerEnded)
            }
        }
    }

    /// Loads the models, starts the engine and the decoding threads, warms up, and sets the state to ready.
    async fn start_engine(&self) -> anyhow::Result<Engine> {
        let start = platform::now();
        let config = &self.config;
        let fetcher = self.fetcher()?;
        let loaded = match self.mock {
            Some(settings) => mock::load(config, settings)?,
            None => loading::load(config, &self.metrics).await?,
        };
        let mark = config.images.memory_high_water_bytes.or_else(memory_budget::high_water_bytes);
        let images = ImagesSettings { memory_high_water_bytes: mark, ..config.images.clone() };
        let images = Images::start(&images, config.http.input.clone(), Arc::clone(&self.metrics))
            .context("cannot start the decoding threads")?;
        let context =
            EngineContext::new(Arc::clone(&self.metrics), Arc::clone(self.state.lifecycle()));
        let engine = loaded
            .backends
            .start(config.engine.clone(), context)
            .context("cannot start the engine")?;
        measure(&engine.handle()).await?;
        self.state.set_ready(Services {
            engine: engine.handle(),
            images,
            fetcher,
            models: loaded.models,
            cpu_isa: Compute::level(config.compute).name().to_owned(),
        });
        tracing::info!(elapsed_ms = start.elapsed().as_millis() as u64, "ready");
        Ok(engine)
    }

    /// Starts to notify the service manager; `None` if there is none.
    fn notifier(&self) -> Option<Notifier> {
        let manager = self.config.service_manager.as_ref()?;
        Notifier::start(manager, self.state.clone(), self.config.drain)
    }

    /// Creates the client that fetches images by URL; `None` unless `fetch.enabled` is set.
    fn fetcher(&self) -> anyhow::Result<Option<Fetcher>> {
        let settings = &self.config.fetch;
        let max_bytes = self.config.http.input.max_image_bytes;
        let make = || Fetcher::try_new(settings, max_bytes, Arc::clone(&self.metrics));
        settings
            .enabled
            .then(make)
            .transpose()
            .context("cannot create the image fetcher (fetch.enabled)")
    }

    /// Drains the server, which already reports that it is not ready: stops admitting requests after the drain delay.
    /// Requests that are still unanswered when the drain timeout is over end with an error.
    async fn drain(&self, engine: &EngineHandle, closing: &CancellationToken) {
        let drain = self.config.drain;
        tokio::time::sleep(drain.delay).await;
        engine.drain();
        closing.cancel();
        if tokio::time::timeout(drain.timeout, engine.drained()).await.is_err() {
            tracing::warn!(
                rows = engine.rows(),
                "the drain timeout is over; failing the remaining requests"
            );
            engine.abort();
        }
    }
}

/// Returns an error if the drain timeout ended requests without an answer.
fn check_all_answered(drained: Drained) -> anyhow::Result<()> {
    anyhow::ensure!(
        drained.requests_cut == 0,
        "the drain timeout ended {} requests without an answer; raise server.drain_timeout_ms or lower \
         server.deadline_ms",
        drained.requests_cut
    );
    Ok(())
}

/// Warms the models up and logs the resulting cost estimates. Without estimates, admission control would admit the
/// whole first burst, and many of its requests would miss their deadlines. If a model fails here, startup fails,
/// because the model would fail on every request.
async fn measure(engine: &EngineHandle) -> anyhow::Result<()> {
    let start = platform::now();
    tokio::select! {
        biased;
        warmed = engine.warm_up() => warmed?,
        // A worker that hangs would keep the process loading for ever.
        () = engine.lost() => return Err(WorkerEnded.into()),
    }
    // Round to the microsecond.
    let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| (seconds * 1e6).round() / 1e3);
    let estimates = engine.estimates();
    tracing::info!(
        elapsed_ms = start.elapsed().as_millis() as u64,
        image_ms = milliseconds(estimates.image),
        text_unit_ms = milliseconds(estimates.unit_fixed),
        text_token_ms = milliseconds(estimates.unit_per_token),
        "warmed up: measured the cost of images and text steps"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::{Environment, Flags, load};
    use crate::engine::EngineSettings;
    use crate::engine::testing::fake::{FakeBackend, models};
    use crate::fairness::ClientId;
    use crate::task::{DecodeMode, GenerationParams};

    fn app() -> (App, Engine, crate::engine::testing::fake::FakeControl) {
        app_with(EngineSettings::default())
    }

    fn worker_up(app: &App) -> i64 {
        app.metrics.worker_up.with_label_values(&["0"]).get()
    }

    fn app_with(
        settings: EngineSettings,
    ) -> (App, Engine, crate::engine::testing::fake::FakeControl) {
        let app = App::build(load(&Flags::default(), &Environment::default()).unwrap()).unwrap();
        let (backend, control) = FakeBackend::new(models());
        let lifecycle = Arc::clone(app.state.lifecycle());
        let context = EngineContext::new(Arc::clone(&app.metrics), lifecycle);
        let engine = Engine::start(backend, settings, context).unwrap();
        (app, engine, control)
    }

    #[tokio::test]
    async fn a_worker_that_ends_by_itself_ends_the_server_with_an_error() {
        let (app, engine, control) = app();
        let handle = engine.handle();
        app.state.lifecycle().mark_loaded();
        assert_eq!((app.metrics.ready.get(), worker_up(&app)), (1, 1));
        control.kill_worker();
        let mut admission =
            handle.admit(ClientId::default(), 0, Instant::now() + Duration::from_secs(30));
        let admission = admission.as_mut().unwrap();
        admission.reserve(1, 1).unwrap();
        let caption = crate::task::Caption {
            image: crate::engine::testing::fake::image(1),
            prompt: None,
            mode: DecodeMode::Generate(GenerationParams::greedy(20)),
            explain: None,
        };
        let reply = admission.submit(crate::task::ModelId(0), crate::task::Task::Caption(caption));
        let (never, closing) = (CancellationToken::new(), CancellationToken::new());
        assert_eq!(app.run(&handle, &never, &closing, &|| ()).await, Err(WorkerEnded));
        assert!(closing.is_cancelled());
        assert_eq!((app.metrics.ready.get(), worker_up(&app)), (0, 0));
        assert_eq!(reply.await, Err(crate::engine::EngineError::WorkerDown));
    }

    #[tokio::test]
    async fn a_worker_that_is_lost_while_draining_ends_the_server_with_an_error() {
        let hang = Duration::from_millis(20);
        let (app, engine, control) =
            app_with(EngineSettings { worker_hang_limit: hang, ..EngineSettings::default() });
        let handle = engine.handle();
        control.hold();
        let mut admission =
            handle.admit(ClientId::default(), 0, Instant::now() + Duration::from_secs(30)).unwrap();
        admission.reserve(1, 1).unwrap();
        let image = crate::engine::testing::fake::image(1);
        let mode = DecodeMode::Generate(GenerationParams::greedy(20));
        let caption = crate::task::Caption { image, prompt: None, mode, explain: None };
        let reply = admission.submit(crate::task::ModelId(0), crate::task::Task::Caption(caption));
        control.wait_until_held();
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        assert_eq!(app.run(&handle, &shutdown, &closing, &|| ()).await, Err(WorkerEnded));
        assert_eq!(reply.await, Err(crate::engine::EngineError::WorkerDown));
        control.release();
    }

    #[tokio::test]
    async fn a_shutdown_without_requests_ends_without_an_error() {
        let (app, engine, _) = app();
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        assert_eq!(app.run(&engine.handle(), &shutdown, &closing, &|| ()).await, Ok(()));
        assert!(closing.is_cancelled());
    }
}
