//! Starting and ending an engine. `app` owns the [`Engine`]; everybody else holds handles.

use std::io;
use std::sync::Arc;

use super::backend::Backend;
use super::settings::SettingsError;
use super::shared::Shared;
use super::sync::{JoinHandle, sync_channel};
use super::worker::{Rebuild, spawn};
use super::{Clock, EngineHandle, EngineSettings};
use crate::telemetry::metrics::Metrics;

/// Room in the inbox beside the tasks that admission bounds: wake-ups.
const WAKE_UPS: usize = 16;

/// A running engine: the worker thread and the first handle.
/// Dropping it tells the worker to end when nothing is left, without waiting for that.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that the engine cannot work with.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The system gave no thread.
    #[error("cannot start the worker thread")]
    Thread(#[source] io::Error),
}

impl Engine {
    /// Starts the worker thread, which owns `backend` from here on.
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

    /// As [`start`](Self::start); a backend that does not work any more is replaced by what `rebuild` gives.
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

    /// As [`start`](Self::start), with deadlines, linger and costs measured on `clock`.
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
        // Every task holds a row at least, so admitted tasks always fit.
        let (sender, inbox) = sync_channel(settings.capacity_rows + WAKE_UPS);
        let shared = Shared::new(backend.models().into(), settings, metrics, clock);
        let thread = spawn(backend, rebuild, Arc::clone(&shared), inbox);
        let thread = thread.map_err(StartError::Thread)?;
        Ok(Self { handle: EngineHandle::new(shared, sender), thread: Some(thread) })
    }

    /// A way in; clones share the engine.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Admits nothing more, lets what was submitted finish, and waits for the thread to end.
    /// Blocks: call it after [`EngineHandle::drained`], or after [`EngineHandle::abort`] to end at the next unit.
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
