//! The thread from its start to its end: it runs the worker, and replaces a backend that does not work any more.
//!
//! A backend is given up when a probe fails after a unit of which nothing came, or when the worker itself panicked.
//! Then the engine is not ready, every task is told that the worker is down, and the backend is built anew; when that
//! fails, or was done a short while ago, the thread ends, so that the process can be restarted.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use super::fault::message;
use super::thread::{Ended, Message, run};
use crate::engine::backend::Backend;
use crate::engine::shared::Shared;
use crate::engine::sync::{Builder, JoinHandle, Receiver};
use crate::telemetry::logging::clipped;

/// The thread's name, as debuggers and `top` show it.
const NAME: &str = "blip-worker";

/// Builds the backend anew, with the same models. Called on the worker's thread, after the old one was dropped.
pub type Rebuild<B> = Box<dyn FnMut() -> Result<B, Box<dyn Error + Send + Sync>> + Send>;

/// Starts the thread. It owns the backend until it ends, which `shared` then says.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn<B: Backend + Send + 'static>(
    backend: B,
    rebuild: Option<Rebuild<B>>,
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(NAME.into()).spawn(move || {
        let _alive = Alive(Arc::clone(&shared));
        let mut supervisor = Supervisor { rebuild, shared, rebuilt: None };
        // Dropped after `died`: who learns from a dropped reply that the worker is down also sees it in the state.
        let _inbox = supervisor.supervise(backend, inbox);
    })
}

/// Says that the thread has ended, however it ended.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.died();
    }
}

struct Supervisor<B> {
    rebuild: Option<Rebuild<B>>,
    shared: Arc<Shared>,
    /// When the backend was last built anew.
    rebuilt: Option<Instant>,
}

impl<B: Backend> Supervisor<B> {
    fn supervise(&mut self, backend: B, inbox: Receiver<Message>) -> Receiver<Message> {
        let mut worker = Worker::new(backend, Arc::clone(&self.shared));
        while self.run(&mut worker, &inbox) == Ended::Sick {
            let heal = self.may_rebuild();
            // The state first: whoever is told sees it.
            if heal {
                self.shared.set_rebuilding(true);
            } else {
                self.shared.died();
            }
            // After a panic the worker's own books may be torn; dropping them answers everybody, too.
            let _ = catch_unwind(AssertUnwindSafe(|| worker.fail_all()));
            drop(worker);
            // Dropping a task answers it, too: who waits would wait for files of gigabytes to be read.
            while inbox.try_recv().is_ok() {}
            if !heal {
                return inbox;
            }
            match self.build() {
                Ok(healed) => worker = healed,
                Err(error) => {
                    tracing::error!(%error, "the backend cannot be built anew");
                    self.shared.died();
                    return inbox;
                }
            }
            self.shared.set_rebuilding(false);
            tracing::info!("the backend works again");
        }
        self.shared.died();
        inbox
    }

    fn run(&self, worker: &mut Worker<B>, inbox: &Receiver<Message>) -> Ended {
        match catch_unwind(AssertUnwindSafe(|| run(worker, inbox))) {
            Ok(ended) => ended,
            Err(payload) => {
                self.shared.metrics.panics_total.with_label_values(&["worker"]).inc();
                let panic = clipped(&message(payload.as_ref()));
                tracing::error!(panic, "the worker thread panicked outside the backend");
                Ended::Sick
            }
        }
    }

    fn may_rebuild(&self) -> bool {
        let now = self.shared.clock.now();
        let interval = self.shared.settings.worker_rebuild_interval;
        // One that fails again so soon will not be healed by doing the same once more.
        let again = |at: Instant| now.saturating_duration_since(at) < interval;
        match (&self.rebuild, self.rebuilt) {
            _ if self.shared.ledger.is_draining() => {
                tracing::error!("the backend does not work any more, and the server is ending");
            }
            (None, _) => tracing::error!("the backend does not work any more"),
            (_, Some(at)) if again(at) => {
                tracing::error!("the backend does not work although it was built anew");
            }
            _ => return true,
        }
        false
    }

    /// A worker on a new backend that passed its probes.
    fn build(&mut self) -> Result<Worker<B>, Box<dyn Error + Send + Sync>> {
        tracing::error!("the backend does not work any more; building it anew");
        let rebuild = self.rebuild.as_mut().ok_or("there is no way to build it")?;
        if crate::faults::at("engine::rebuild") {
            return Err("an injected fault".into());
        }
        // Building panics where loading does, which must not look like a bug of the worker.
        let built = catch_unwind(AssertUnwindSafe(rebuild));
        let backend = built.unwrap_or_else(|payload| Err(message(payload.as_ref()).into()))?;
        if *backend.models() != *self.shared.models {
            return Err("the models have changed in the meantime".into());
        }
        let mut worker = Worker::new(backend, Arc::clone(&self.shared));
        if let Err(error) = worker.warm_up() {
            return Err(format!("it does not work either: {error}").into());
        }
        self.shared.metrics.worker_restarts_total.inc();
        self.rebuilt = Some(self.shared.clock.now());
        Ok(worker)
    }
}
