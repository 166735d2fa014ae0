//! The state that all handlers share. It has the settings, the metrics and the lifecycle of the process from startup,
//! and the models once they are loaded. `app` creates the state, sets the models, and announces the shutdown.

pub(crate) mod bulk_requests;
pub(crate) mod metric_labels;
pub(crate) mod models;
pub(crate) mod requests_in_flight;

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use self::bulk_requests::BulkRequests;
use self::metric_labels::{ItemCounters, TaskLabel};
use self::models::Models;
use self::requests_in_flight::RequestsInFlight;
use super::access::Access;
use super::blocking::Jobs;
use super::error::ApiError;
use super::settings::HttpSettings;
use crate::engine::{EngineHandle, Lifecycle, Phase};
use crate::fetch::Fetcher;
use crate::images::Images;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Tracer;

/// State of the router; clones share everything.
#[derive(Clone)]
pub struct HttpState(Arc<Shared>);

struct Shared {
    settings: HttpSettings,
    access: Access,
    metrics: Arc<Metrics>,
    item_counters: ItemCounters,
    services: OnceLock<Services>,
    lifecycle: Arc<Lifecycle>,
    requests: RequestsInFlight,
    bulk_requests: BulkRequests,
    jobs: Jobs,
    /// `None` if tracing is off.
    tracer: Option<Tracer>,
    /// Tells the file watchers to reload their files.
    reloads: watch::Sender<()>,
}

/// The services that answer requests, which exist once the models are loaded.
pub struct Services {
    /// Handle to admission control and the worker threads.
    pub engine: EngineHandle,
    /// Turns image values of requests into pixels. Contains the decoding pool and the pixel cache.
    pub images: Images,
    /// Fetches images by URL; `None` if fetching is switched off.
    pub fetcher: Option<Fetcher>,
    /// The loaded models: names, tokenizers, and the default for each role.
    pub models: Models,
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
    /// A worker thread has ended or hangs, or the backends of all workers are being rebuilt.
    WorkerDown,
}

impl HttpState {
    /// Creates a state without models. Health, metrics and the API documents work; all other requests fail with the
    /// error `not_ready`.
    pub fn new(settings: HttpSettings, metrics: Arc<Metrics>) -> Self {
        Self::with_tracer(settings, metrics, None)
    }

    /// Like [`new`](Self::new), for a server that traces requests if there is a tracer.
    pub fn with_tracer(
        settings: HttpSettings,
        metrics: Arc<Metrics>,
        tracer: Option<Tracer>,
    ) -> Self {
        self::metric_labels::initialise(&metrics);
        let shared = Shared {
            lifecycle: Lifecycle::loading(&metrics),
            requests: RequestsInFlight::new(metrics.http_requests_in_flight.clone()),
            bulk_requests: BulkRequests::new(settings.bulk.max_requests, Arc::clone(&metrics)),
            jobs: Jobs::new(),
            access: Access::new(settings.auth.as_ref(), settings.rate_limit),
            settings,
            tracer,
            metrics,
            item_counters: ItemCounters::default(),
            services: OnceLock::new(),
            reloads: watch::Sender::new(()),
        };
        Self(Arc::new(shared))
    }

    /// Returns the lifecycle of the process, which the engine shares.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.0.lifecycle
    }

    /// Sets the services, so that requests are served from now on. A second call changes nothing.
    pub fn set_ready(&self, services: Services) {
        self.0.item_counters.set_models(&self.0.metrics, &services.models);
        // `set` fails only on a second call, which by contract changes nothing.
        let _ = self.0.services.set(services);
        self.0.lifecycle.mark_loaded();
    }

    /// Makes `/health/ready` answer 503 from now on. Requests are still served until the engine drains.
    pub fn set_draining(&self) {
        self.0.lifecycle.announce_shutdown();
    }

    /// Tells the file watchers to reload the files of keys and certificates at once.
    pub fn reload_files(&self) {
        self.0.reloads.send_replace(());
    }

    /// Returns a receiver that is notified of each future call of [`reload_files`](Self::reload_files).
    pub(crate) fn reloads(&self) -> watch::Receiver<()> {
        self.0.reloads.subscribe()
    }

    /// Returns whether the server accepts requests. During a shutdown the answer is `Draining`, even if a worker is
    /// down as well.
    pub fn readiness(&self) -> Readiness {
        if self.0.lifecycle.is_shutting_down() {
            return Readiness::Draining;
        }
        match self.phase() {
            Phase::Loading => Readiness::Loading,
            Phase::Ready => Readiness::Ready,
            Phase::Draining => Readiness::Draining,
            Phase::Rebuilding | Phase::Down => Readiness::WorkerDown,
        }
    }

    /// True if a worker thread has ended or hangs. This is reported even during a shutdown. Only a restart of the
    /// process helps.
    pub(crate) fn worker_is_down(&self) -> bool {
        self.phase() == Phase::Down
    }

    /// Returns the phase of the process. Once an engine runs, the phase is [`Phase::Down`] if a worker has sent no
    /// heartbeat for too long.
    fn phase(&self) -> Phase {
        let services = self.0.services.get();
        services.map_or_else(|| self.0.lifecycle.phase(), |services| services.engine.phase())
    }

    /// Returns the settings of the HTTP side.
    pub fn settings(&self) -> &HttpSettings {
        &self.0.settings
    }

    /// Returns the count of the requests that are being answered.
    pub(crate) fn requests(&self) -> &RequestsInFlight {
        &self.0.requests
    }

    /// Returns the turns of the bulk requests.
    pub(crate) fn bulk_requests(&self) -> &BulkRequests {
        &self.0.bulk_requests
    }

    /// Returns what runs the long jobs of calls away from the threads that serve connections.
    pub(crate) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Returns what begins the traces of requests; `None` if tracing is off.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.0.tracer.as_ref()
    }

    /// Returns the metrics of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Creates the counters for the inputs of the router's endpoints: at once if the models are loaded, otherwise as
    /// soon as they are.
    pub(crate) fn initialise_tasks(&self, tasks: Vec<TaskLabel>) {
        self.0.item_counters.set_tasks(&self.0.metrics, tasks);
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
