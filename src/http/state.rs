//! What handlers hold: settings and metrics from the start, the models once they are loaded, and in which
//! part of its life the process is. Clones share everything. `app` makes it and moves its phases.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::access::Access;
use super::error::ApiError;
use super::info::BatchingInfo;
use super::models::Models;
use super::settings::HttpSettings;
use super::written::WrittenDocument;
use crate::engine::{EngineHandle, EngineState};
use crate::fetch::Fetcher;
use crate::images::Images;
use crate::telemetry::metrics::Metrics;

/// The state of the router.
#[derive(Clone)]
pub struct HttpState(Arc<Shared>);

struct Shared {
    settings: HttpSettings,
    access: Access,
    metrics: Arc<Metrics>,
    services: OnceLock<Services>,
    document: WrittenDocument,
    phase: AtomicU8,
    /// Changes whenever files are to be read again.
    reloads: watch::Sender<()>,
}

/// What answers requests; known once the models are loaded.
pub struct Services {
    /// Admission and the worker.
    pub engine: EngineHandle,
    /// Image values to prepared images.
    pub images: Images,
    /// Images by URL, where that is switched on.
    pub fetcher: Option<Fetcher>,
    /// Names, tokenizers, defaults per role.
    pub models: Models,
    /// What `/info` tells of batching.
    pub batching: BatchingInfo,
    /// The instruction set that the CPU kernels use, for `/info`.
    pub cpu_isa: String,
}

/// Whether requests are served, as `/health/ready` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Requests are served.
    Ready,
    /// The models are not loaded yet.
    Loading,
    /// Shutting down: what was admitted is finished, nothing new should come.
    Draining,
    /// The worker thread has gone or hangs, or its backend is being built anew.
    WorkerDown,
}

const PHASE_SERVING: u8 = 0;
const PHASE_DRAINING: u8 = 1;

impl HttpState {
    /// A state that answers health, metrics and documents, and refuses the rest as not ready.
    pub fn new(settings: HttpSettings, metrics: Arc<Metrics>) -> Self {
        super::metric_labels::initialise(&metrics);
        let shared = Shared {
            access: Access::new(settings.auth.as_ref(), settings.rate_limit),
            settings,
            metrics,
            services: OnceLock::new(),
            document: WrittenDocument::default(),
            phase: AtomicU8::new(PHASE_SERVING),
            reloads: watch::Sender::new(()),
        };
        Self(Arc::new(shared))
    }

    /// From now on requests are served. A second call changes nothing.
    pub fn set_ready(&self, services: Services) {
        super::metric_labels::initialise_models(&self.0.metrics, &services.models);
        // A second set of services can only come from a second call, which by contract changes nothing.
        let _ = self.0.services.set(services);
        self.0.metrics.ready.set(i64::from(self.readiness() == Readiness::Ready));
    }

    /// From now on `/health/ready` answers 503. Requests are still served until the engine drains.
    pub fn set_draining(&self) {
        self.0.phase.store(PHASE_DRAINING, Ordering::Release);
        self.0.metrics.ready.set(0);
        self.0.metrics.draining.set(1);
    }

    /// Reads the files of keys and certificates again, at once.
    pub fn reload_files(&self) {
        self.0.reloads.send_replace(());
    }

    /// Sees each call of [`reload_files`](Self::reload_files) from now on.
    pub(crate) fn reloads(&self) -> watch::Receiver<()> {
        self.0.reloads.subscribe()
    }

    /// Whether requests are served.
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

    /// True when the worker thread has gone or hangs, while draining too: only a restart helps.
    pub(crate) fn worker_is_down(&self) -> bool {
        let services = self.0.services.get();
        services.is_some_and(|services| services.engine.state() == EngineState::WorkerDown)
    }

    /// The settings.
    pub fn settings(&self) -> &HttpSettings {
        &self.0.settings
    }

    /// The OpenAPI document, once it was asked for.
    pub(crate) fn document(&self) -> &WrittenDocument {
        &self.0.document
    }

    /// Keys and limits.
    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// What answers requests.
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
