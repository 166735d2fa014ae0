//! Starting and stopping an engine. `app` owns the [`Engine`]; everybody else holds an [`EngineHandle`].

use std::sync::Arc;
use std::{fmt, io};

use super::backend::Backend;
use super::lifecycle::Lifecycle;
use super::shared::{Common, Shared};
use super::sync::{JoinHandle, sync_channel};
use super::worker::{Rebuild, spawn};
use super::worker_handle::WorkerHandle;
use super::{Clock, EngineHandle, EngineSettings};
use crate::settings::{InvalidSetting, Section};
use crate::telemetry::metrics::Metrics;

/// Number of places in the inbox for wake-up messages, in addition to one place for each admitted task.
const WAKE_UPS: usize = 16;

/// A running engine: its worker threads and the first handle. Dropping it asks the workers to stop once all their tasks
/// are done, but does not wait for that.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    threads: Vec<JoinHandle<()>>,
}

/// A backend for one worker. If it can be rebuilt, a backend that stops working is replaced.
pub struct WorkerBackend<B> {
    /// The loaded models.
    pub backend: B,
    /// Loads them again; `None` if they cannot be loaded again.
    pub rebuild: Option<Rebuild<B>>,
}

/// What an engine shares with the rest of the process.
#[derive(Clone)]
pub struct EngineContext {
    /// Metrics that the engine writes.
    pub metrics: Arc<Metrics>,
    /// The state of the process. A server passes the lifecycle that its HTTP side reports.
    pub lifecycle: Arc<Lifecycle>,
    /// Clock for deadlines, linger times and costs.
    pub clock: Clock,
}

impl EngineContext {
    /// Creates the context of an engine in a process with this lifecycle, on the system's clock.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, lifecycle: Arc<Lifecycle>) -> Self {
        Self { metrics, lifecycle, clock: Clock::system() }
    }

    /// Creates the context of an engine without a server, on the system's clock.
    #[must_use]
    pub fn without_server(metrics: Arc<Metrics>) -> Self {
        let lifecycle = Lifecycle::without_server(&metrics);
        Self::new(metrics, lifecycle)
    }
}

impl fmt::Debug for EngineContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineContext").field("lifecycle", &self.lifecycle).finish_non_exhaustive()
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings did not pass their [check](Section::check).
    #[error(transparent)]
    Settings(#[from] InvalidSetting),
    /// The operating system did not create a worker thread.
    #[error("cannot start a worker thread")]
    Thread(#[source] io::Error),
}

impl Engine {
    /// Starts one worker thread, which owns `backend` from now on.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<B: Backend + Send + 'static>(
        backend: B,
        settings: EngineSettings,
        context: EngineContext,
    ) -> Result<Self, StartError> {
        let backend = WorkerBackend { backend, rebuild: None };
        Self::start_workers(backend, Vec::new(), settings, context)
    }

    /// Like [`start`](Self::start), but a backend that stops working is replaced by one that `rebuild` returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_supervised<B: Backend + Send + 'static>(
        backend: B,
        rebuild: Rebuild<B>,
        settings: EngineSettings,
        context: EngineContext,
    ) -> Result<Self, StartError> {
        let backend = WorkerBackend { backend, rebuild: Some(rebuild) };
        Self::start_workers(backend, Vec::new(), settings, context)
    }

    /// Starts one worker thread for each backend. The backends have the same models, each on a device of its own, and the
    /// settings hold for each of them.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_workers<B: Backend + Send + 'static>(
        first: WorkerBackend<B>,
        others: Vec<WorkerBackend<B>>,
        settings: EngineSettings,
        context: EngineContext,
    ) -> Result<Self, StartError> {
        settings.check()?;
        let common = Common::default();
        let launch = move |WorkerBackend { backend, rebuild }| {
            // Every task reserves at least one row, so admitted tasks always fit into the inbox, those of bulk work
            // included.
            let (sender, inbox) = sync_channel(settings.capacity_rows * 2 + WAKE_UPS);
            let models = Backend::models(&backend).into();
            let shared = Shared::new(models, settings.clone(), context.clone(), common.clone());
            let thread = spawn(backend, rebuild, Arc::clone(&shared), inbox);
            let thread = thread.map_err(StartError::Thread)?;
            Ok((WorkerHandle { shared, inbox: sender }, thread))
        };
        // If a thread cannot be started, the workers before it end, because nobody holds their inboxes.
        let (first, thread) = launch(first)?;
        let others: Result<Vec<_>, StartError> = others.into_iter().map(launch).collect();
        let (others, mut threads): (Vec<_>, Vec<_>) = others?.into_iter().unzip();
        threads.push(thread);
        Ok(Self { handle: EngineHandle::new(first, others), threads })
    }

    /// Returns a handle to this engine.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Stops admission, lets submitted tasks finish, and blocks until the worker threads have ended. Call this after
    /// [`EngineHandle::drained`]. To end sooner, call it after [`EngineHandle::abort`]; then each worker ends after its
    /// current work unit.
    pub fn join(mut self) {
        self.handle.stop();
        for thread in self.threads.drain(..) {
            // The thread has logged its own panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.stop();
    }
}
