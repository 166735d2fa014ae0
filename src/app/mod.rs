//! The composition root: the only folder that knows every other one.
//!
//! - this file: from a checked configuration to a running server, and to its end.
//! - `bar`: how loading shows that it moves.
//! - `compute`: device, number format, instructions and threads, resolved.
//! - `descriptors`: what the settings may open, against what the process may.
//! - `fault`: whether a failed start is a checkpoint's fault.
//! - `loading`: sources to files, files to models and tokenizers, placed on a device.
//! - `mock`: models of fixed latency in their place.
//! - `memory`: what the bounds allow in sum, against what the process may have.
//! - [`mod@bench`]: the models alone, measured.

mod bar;
pub mod bench;
mod compute;
mod descriptors;
mod fault;
mod loading;
mod memory;
mod mock;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
pub use crate::engine::WarmUpError;
use crate::engine::{Engine, EngineHandle, EngineSettings};
use crate::fetch::Fetcher;
use crate::http::{self, BatchingInfo, HttpState, Listener, Services};
use crate::images::{Images, ImagesSettings};
use crate::telemetry::metrics::Metrics;
use compute::{Compute, LoadedBackend};
pub use fault::is_checkpoint_fault;
pub use mock::MockSettings;

/// Once everybody has been answered the worker may finish the unit that it runs.
const LAST_UNIT: Duration = Duration::from_secs(2);

/// A server that has not begun to serve.
pub struct App {
    config: Config,
    metrics: Arc<Metrics>,
    state: HttpState,
    ready: CancellationToken,
    /// Serves a mock instead of the configured models.
    mock: Option<MockSettings>,
    /// Where operators are answered, apart from clients.
    operations: Option<TcpListener>,
}

/// The worker thread ended, or hung, while requests were served. Its reason has been logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker thread has ended or hangs")]
pub struct WorkerEnded;

/// Reads what the configured directories say of their models, so that a broken one is told before a port is bound.
/// Weights are read later, and so are models of the hub.
///
/// # Errors
/// The first fault; it names the model and the file.
pub fn check_models(config: &Config) -> anyhow::Result<()> {
    loading::check(config)
}

impl App {
    /// Puts the parts together that need no model. Cheap; nothing is read or bound.
    ///
    /// # Errors
    /// When the metrics cannot be registered.
    pub fn build(config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::try_new().context("cannot register the metrics")?);
        let state = HttpState::new(config.http.clone(), Arc::clone(&metrics));
        Ok(Self {
            config,
            metrics,
            state,
            ready: CancellationToken::new(),
            mock: None,
            operations: None,
        })
    }

    /// Serves a mock instead of the configured models.
    #[must_use]
    pub fn with_mock(self, settings: MockSettings) -> Self {
        Self { mock: Some(settings), ..self }
    }

    /// Answers operators on a listener of their own, from the beginning of [`serve`](Self::serve) to its end.
    #[must_use]
    pub fn with_operations(self, listener: TcpListener) -> Self {
        Self { operations: Some(listener), ..self }
    }

    /// What handlers hold, and what reads files again.
    #[must_use]
    pub fn state(&self) -> &HttpState {
        &self.state
    }

    /// A token that is cancelled once requests are served.
    #[must_use]
    pub fn ready(&self) -> CancellationToken {
        self.ready.clone()
    }

    /// Answers on `listener` at once (health, metrics, documents; the rest is refused as not ready), loads the
    /// models, serves until `shutdown`, drains.
    ///
    /// # Errors
    /// When a model cannot be had or loaded, or the engine cannot start; [`WarmUpError`] when a model that was loaded
    /// cannot compute; [`WorkerEnded`] when the worker thread ended by itself.
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
                tracing::info!(server.operations_url = url, "operations on {url}");
                let (state, closing) = (self.state.clone(), closing.clone());
                let serving =
                    async move { http::serve_operations(listener, &state, closing).await };
                Some(tokio::spawn(serving))
            }
            None => None,
        };
        let served = self.serve_public(listener.into(), shutdown).await;
        closing.cancel();
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
        let connections = tokio::spawn({
            let (state, closing) = (self.state.clone(), closing.clone());
            async move { http::serve(listener, http::router(state.clone()), &state, closing).await }
        });
        let engine = tokio::select! {
            engine = self.start_engine() => engine,
            () = shutdown.cancelled() => {
                self.state.set_draining();
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
        let outcome = self.run(&engine.handle(), &shutdown, &closing).await;
        let drained = connections.await.context("serving connections failed")?;
        // A worker that was lost may hang: nobody waits for it.
        outcome?;
        let join = tokio::task::spawn_blocking(move || engine.join());
        if let Ok(joined) = tokio::time::timeout(LAST_UNIT, join).await {
            joined.context("the worker did not end")?;
        } else {
            // Everybody has been answered: a unit, or a backend that is being built anew, need not be waited for.
            tracing::warn!("the worker is still at it; ending without it");
        }
        anyhow::ensure!(
            drained.requests_cut == 0,
            "{} requests were cut without an answer when the drain time was over; raise server.drain_timeout_ms, or lower \
             server.deadline_ms",
            drained.requests_cut
        );
        Ok(())
    }

    /// Until it is told to shut down, and through the drain; or until the worker ends by itself or hangs: then nothing
    /// can be answered any more, and only a new process can.
    async fn run(
        &self,
        engine: &EngineHandle,
        shutdown: &CancellationToken,
        closing: &CancellationToken,
    ) -> Result<(), WorkerEnded> {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = engine.lost() => {
                closing.cancel();
                return Err(WorkerEnded);
            }
        }
        tokio::select! {
            () = self.drain(engine, closing) => Ok(()),
            () = engine.lost() => {
                closing.cancel();
                Err(WorkerEnded)
            }
        }
    }

    /// Loads everything and sets the state to ready.
    async fn start_engine(&self) -> anyhow::Result<Engine> {
        let start = Instant::now();
        let config = &self.config;
        let fetcher = self.fetcher()?;
        let loaded = match self.mock {
            Some(settings) => mock::load(config, settings)?,
            None => loading::load(config, &self.metrics).await?,
        };
        let mark = config.images.memory_high_water_bytes.or_else(memory::high_water_bytes);
        let images = ImagesSettings { memory_high_water_bytes: mark, ..config.images.clone() };
        let images = Images::start(&images, config.http.input.clone(), Arc::clone(&self.metrics))
            .context("cannot start the decoding threads")?;
        let (settings, metrics) = (config.engine.clone(), Arc::clone(&self.metrics));
        let engine = match loaded.backend {
            LoadedBackend::Kernels(backend, rebuild) => {
                Engine::start_supervised(backend, rebuild, settings, metrics)
            }
            LoadedBackend::Candle(backend, rebuild) => {
                Engine::start_supervised(backend, rebuild, settings, metrics)
            }
            LoadedBackend::Mock(backend) => Engine::start(backend, settings, metrics),
        };
        let engine = engine.context("cannot start the engine")?;
        measure(&engine.handle()).await?;
        self.state.set_ready(Services {
            engine: engine.handle(),
            images,
            fetcher,
            models: loaded.models,
            batching: batching_info(&config.engine),
            cpu_isa: Compute::resolve(config.compute).level.name().to_owned(),
        });
        tracing::info!(elapsed_ms = start.elapsed().as_millis() as u64, "ready");
        Ok(engine)
    }

    /// The client for images by URL, where that is switched on.
    fn fetcher(&self) -> anyhow::Result<Option<Fetcher>> {
        let settings = &self.config.fetch;
        let max_bytes = self.config.http.input.max_image_bytes;
        let make = || Fetcher::try_new(settings, max_bytes, Arc::clone(&self.metrics));
        settings.enabled.then(make).transpose().context("cannot set up fetching (fetch.enabled)")
    }

    /// Not ready at once; after the delay nothing new is admitted; after the drain time what is left fails.
    async fn drain(&self, engine: &EngineHandle, closing: &CancellationToken) {
        let drain = self.config.drain;
        self.state.set_draining();
        tokio::time::sleep(drain.delay).await;
        engine.drain();
        closing.cancel();
        if tokio::time::timeout(drain.timeout, engine.drained()).await.is_err() {
            tracing::warn!(rows = engine.rows(), "the drain time is over, failing what is left");
            engine.abort();
        }
    }
}

/// A first burst that meets no estimates would all be admitted, and end in deadlines. A model that fails here would fail
/// on every request.
async fn measure(engine: &EngineHandle) -> anyhow::Result<()> {
    let start = Instant::now();
    engine.warm_up().await?;
    // To the microsecond.
    let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| (seconds * 1e6).round() / 1e3);
    let estimates = engine.estimates();
    tracing::info!(
        elapsed_ms = start.elapsed().as_millis() as u64,
        image_ms = milliseconds(estimates.image),
        text_unit_ms = milliseconds(estimates.unit_fixed),
        text_token_ms = milliseconds(estimates.unit_per_token),
        "measured what work costs"
    );
    Ok(())
}

fn batching_info(settings: &EngineSettings) -> BatchingInfo {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    BatchingInfo {
        capacity_rows: settings.capacity_rows,
        capacity_bytes: settings.capacity_bytes,
        max_queue_wait_ms: milliseconds(settings.max_queue_wait),
        unit_time_ms: milliseconds(settings.unit_time),
        linger_ms: milliseconds(settings.linger),
        max_batch_images: settings.max_batch_images,
        max_batch_rows: settings.max_batch_rows,
        max_batch_tokens: settings.max_batch_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, load};
    use crate::engine::fake::{FakeBackend, models};
    use crate::fairness::ClientId;

    fn app() -> (App, Engine, crate::engine::fake::FakeControl) {
        app_with(EngineSettings::default())
    }

    fn app_with(settings: EngineSettings) -> (App, Engine, crate::engine::fake::FakeControl) {
        let app = App::build(load(&Flags::default(), &Environment::default()).unwrap()).unwrap();
        let (backend, control) = FakeBackend::new(models());
        let engine = Engine::start(backend, settings, Arc::clone(&app.metrics)).unwrap();
        (app, engine, control)
    }

    #[tokio::test]
    async fn a_worker_that_ends_by_itself_ends_the_server_with_an_error() {
        let (app, engine, control) = app();
        let handle = engine.handle();
        app.metrics.ready.set(1);
        control.kill_worker();
        let mut admission =
            handle.admit(ClientId::default(), 0, Instant::now() + Duration::from_secs(30));
        let admission = admission.as_mut().unwrap();
        admission.reserve(1, 1).unwrap();
        let caption = crate::task::Caption {
            image: crate::engine::fake::image(1),
            prompt: None,
            params: crate::task::GenerationParams::greedy(20),
        };
        let reply = admission.submit(crate::task::ModelId(0), crate::task::Task::Caption(caption));
        let (never, closing) = (CancellationToken::new(), CancellationToken::new());
        assert_eq!(app.run(&handle, &never, &closing).await, Err(WorkerEnded));
        assert!(closing.is_cancelled());
        assert_eq!((app.metrics.ready.get(), app.metrics.worker_up.get()), (0, 0));
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
        let image = crate::engine::fake::image(1);
        let params = crate::task::GenerationParams::greedy(20);
        let caption = crate::task::Caption { image, prompt: None, params };
        let reply = admission.submit(crate::task::ModelId(0), crate::task::Task::Caption(caption));
        control.wait_until_held();
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        assert_eq!(app.run(&handle, &shutdown, &closing).await, Err(WorkerEnded));
        assert_eq!(reply.await, Err(crate::engine::EngineError::WorkerDown));
        control.release();
    }

    #[tokio::test]
    async fn a_server_that_is_told_to_stop_ends_well() {
        let (app, engine, _) = app();
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        shutdown.cancel();
        assert_eq!(app.run(&engine.handle(), &shutdown, &closing).await, Ok(()));
        assert!(closing.is_cancelled());
    }
}
