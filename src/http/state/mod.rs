//! The state that all handlers share: settings and metrics from the start, the models once they are loaded, and whether
//! the process is loading, serving or draining. `app` creates the state and changes its phase.

pub(crate) mod batching;
pub(crate) mod metric_labels;
pub(crate) mod models;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use self::batching::BatchingInfo;
use self::models::Models;
use super::access::Access;
use super::error::ApiError;
use super::settings::HttpSettings;
use crate::engine::{EngineHandle, EngineState};
use crate::fetch::Fetcher;
use crate::images::Images;
use crate::telemetry::metrics::Metrics;

/// State of the router; clones share everything.
#[derive(Clone)]
pub struct HttpState(Arc<Shared>);

struct Shared {
    settings: HttpSettings,
    access: Access,
    metrics: Arc<Metrics>,
    services: OnceLock<Services>,
    phase: AtomicU8,
    /// Tells the file watchers to reload their files.
    reloads: watch::Sender<()>,
}

/// The services that answer requests, which exist once the models are loaded.
pub struct Services {
    /// Handle to admission control and the worker thread.
    pub engine: EngineHandle,
    /// Turns image values of requests into pixels. Contains the decoding pool and the pixel cache.
    pub images: Images,
    /// Fetches images by URL; `None` if fetching is switched off.
    pub fetcher: Option<Fetcher>,
    /// The loaded models: names, tokenizers, and the default for each role.
    pub models: Models,
    /// The batching settings that `/info` shows.
    pub batching: BatchingInfo,
    /// The instruction set that the CPU kernels use, for `/info`.
    pub cpu_isa: String,
}

/// Whether the server accepts requests, as `/health/ready` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// The server accepts and answers requests.
    Ready,
    /// The models are not loaded yet.
    Loading,
    /// The server is shutting down: it finishes admitted requests, and clients should send no new ones.
    Draining,
    /// The worker thread has ended or hangs, or its backend is being rebuilt.
    WorkerDown,
}

const PHASE_SERVING: u8 = 0;
const PHASE_DRAINING: u8 = 1;

impl HttpState {
    /// Creates a state without models. Health, metrics and the API documents work; all other requests fail as not
    /// ready.
    pub fn new(settings: HttpSettings, metrics: Arc<Metrics>) -> Self {
        self::metric_labels::initialise(&metrics);
        let shared = Shared {
            access: Access::new(settings.auth.as_ref(), settings.rate_limit),
            settings,
            metrics,
            services: OnceLock::new(),
            phase: AtomicU8::new(PHASE_SERVING),
            reloads: watch::Sender::new(()),
        };
        Self(Arc::new(shared))
    }

    /// Sets the services, so that requests are served from now on. A second call changes nothing.
    pub fn set_ready(&self, services: Services) {
        self::metric_labels::initialise_models(&self.0.metrics, &services.models);
        if self.0.phase.load(Ordering::Acquire) == PHASE_DRAINING {
            services.engine.announce_shutdown();
        }
        // `set` fails only on a second call, which by contract changes nothing.
        let _ = self.0.services.set(services);
        self.0.metrics.ready.set(i64::from(self.readiness() == Readiness::Ready));
    }

    /// Makes `/health/ready` answer 503 from now on. Requests are still served until the engine drains.
    pub fn set_draining(&self) {
        self.0.phase.store(PHASE_DRAINING, Ordering::Release);
        self.0.metrics.ready.set(0);
        self.0.metrics.draining.set(1);
        if let Some(services) = self.0.services.get() {
            services.engine.announce_shutdown();
        }
    }

    /// Tells the file watchers to reload the files of keys and certificates at once.
    pub fn reload_files(&self) {
        self.0.reloads.send_replace(());
    }

    /// Returns a receiver that is notified of each future call of [`reload_files`](Self::reload_files).
    pub(crate) fn reloads(&self) -> watch::Receiver<()> {
        self.0.reloads.subscribe()
    }

    /// Returns whether the server accepts requests, derived from its phase and the state of the engine.
    pub fn readiness(&self) -> Readiness {
        if self.0.phase.load(Ordering::Acquire) == PHASE_DRAINING {
            return Readiness::Draining;
        }
        match self.0.services.get().map(|services| services.engine.state()) {
            None => Readiness::Loading,
            Some(EngineState::Ready) => Readiness::Ready,
            Some(EngineState::Draining) => Readiness::Draining,
            Some(EngineState::Rebuilding | EngineState::WorkerDown) => Readiness::WorkerDown,
        }
    }

    /// True if the worker thread has ended or hangs, even while draining. Only a restart of the process helps.
    pub(crate) fn worker_is_down(&self) -> bool {
        let services = self.0.services.get();
        services.is_some_and(|services| services.engine.state() == EngineState::WorkerDown)
    }

    /// Returns the settings of the HTTP side.
    pub fn settings(&self) -> &HttpSettings {
        &self.0.settings
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Returns the metrics of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Returns the services that answer requests.
    ///
    /// # Errors
    /// `not_ready` while the models load.
    pub(crate) fn services(&self) -> Result<&Services, ApiError> {
        self.0.services.get().ok_or_else(ApiError::not_ready)
    }
}

impl std::fmt::Debug for HttpState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpState").field("readiness", &self.readiness()).finish_non_exhaustive()
    }
}
