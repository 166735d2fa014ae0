//! Starting and stopping an engine. `app` owns the [`Engine`]; everybody else holds an [`EngineHandle`].

use std::io;
use std::sync::Arc;

use super::backend::Backend;
use super::settings::SettingsError;
use super::shared::Shared;
use super::sync::{JoinHandle, sync_channel};
use super::worker::{Rebuild, spawn};
use super::{Clock, EngineHandle, EngineSettings};
use crate::telemetry::metrics::Metrics;

/// Number of places in the inbox for wake-up messages, in addition to one place for each admitted task.
const WAKE_UPS: usize = 16;

/// A running engine: the worker thread and the first handle. Dropping it asks the worker to stop once all its tasks are
/// done, but does not wait for that.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings did not pass [`EngineSettings::check`].
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The operating system did not create the worker thread.
    #[error("cannot start the worker thread")]
    Thread(#[source] io::Error),
}

impl Engine {
    /// Starts the worker thread, which owns `backend` from now on.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start<B: Backend + Send + 'static>(
        backend: B,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        Self::start_with_clock(backend, settings, metrics, Clock::system())
    }

    /// Like [`start`](Self::start), but a backend that stops working is replaced by one that `rebuild` returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_supervised<B: Backend + Send + 'static>(
        backend: B,
        rebuild: Rebuild<B>,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        Self::launch(backend, Some(rebuild), settings, metrics, Clock::system())
    }

    /// Like [`start`](Self::start), with deadlines, linger times and costs measured on `clock`.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with_clock<B: Backend + Send + 'static>(
        backend: B,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        Self::launch(backend, None, settings, metrics, clock)
    }

    pub(super) fn launch<B: Backend + Send + 'static>(
        backend: B,
        rebuild: Option<Rebuild<B>>,
        settings: EngineSettings,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        settings.check()?;
        // Every task reserves at least one row, so admitted tasks always fit into the inbox.
        let (sender, inbox) = sync_channel(settings.capacity_rows + WAKE_UPS);
        let shared = Shared::new(backend.models().into(), settings, metrics, clock);
        let thread = spawn(backend, rebuild, Arc::clone(&shared), inbox);
        let thread = thread.map_err(StartError::Thread)?;
        Ok(Self { handle: EngineHandle::new(shared, sender), thread: Some(thread) })
    }

    /// Returns a handle to this engine.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Stops admission, lets submitted tasks finish, and blocks until the worker thread has ended. Call this after
    /// [`EngineHandle::drained`], or after [`EngineHandle::abort`] to end after the current work unit.
    pub fn join(mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
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
