//! Supervision of the worker thread: runs the worker, and rebuilds a backend that has failed.
//!
//! A backend is abandoned when it fails a probe (see `probe`), or when the worker itself panics. The engine is then not
//! ready, every task ends with `WorkerDown`, and the backend is rebuilt. In the following cases the thread ends
//! instead, so that the process can be restarted: rebuilding is not supported or fails, the engine is draining, the last
//! rebuild was less than `worker_rebuild_interval` ago, or the device is lost.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::fault::message;
use super::thread::{Ended, Message, run};
use super::turn::Worker;
use crate::engine::backend::Backend;
use crate::engine::shared::Shared;
use crate::engine::sync::{Builder, JoinHandle, Receiver};
use crate::telemetry::logging::clipped;

/// Name of the thread, before the worker's number, as debuggers and `top` show it.
const NAME: &str = "blip-worker-";

/// A function that rebuilds the backend with the same models. It is called on the worker thread, after the old backend
/// has been dropped.
pub type Rebuild<B> = Box<dyn FnMut() -> Result<B, Box<dyn Error + Send + Sync>> + Send>;

/// Starts the worker thread, which owns the backend. When the thread ends, it records that in `shared`.
///
/// # Errors
/// Returns an error if the operating system does not create a thread.
pub(crate) fn spawn<B: Backend + Send + 'static>(
    backend: B,
    rebuild: Option<Rebuild<B>>,
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
) -> io::Result<JoinHandle<()>> {
    let worker = shared.lifecycle.label();
    let name = NAME.to_owned() + &worker;
    Builder::new().name(name).spawn(move || {
        let _alive = Alive(Arc::clone(&shared));
        let mut supervisor = Supervisor { worker, rebuild, shared, rebuilt: None };
        // The inbox is dropped only after the lifecycle is `Down`. So when a client's reply resolves to `WorkerDown`,
        // the lifecycle already reports `Down`.
        let _inbox = supervisor.supervise(backend, inbox);
    })
}

/// A guard that records the thread's end in the shared state, even after a panic.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.lifecycle.mark_ended();
    }
}

struct Supervisor<B> {
    /// The worker's number, for the log and as a label of metrics.
    worker: String,
    rebuild: Option<Rebuild<B>>,
    shared: Arc<Shared>,
    /// When the backend was last rebuilt.
    rebuilt: Option<Instant>,
}

impl<B: Backend> Supervisor<B> {
    fn supervise(&mut self, backend: B, inbox: Receiver<Message>) -> Receiver<Message> {
        let mut worker = Worker::new(backend, Arc::clone(&self.shared));
        loop {
            let can_rebuild = match self.run(&mut worker, &inbox) {
                Ended::Done => break,
                Ended::BackendFailed => self.may_rebuild(),
                Ended::DeviceLost => {
                    tracing::error!(
                        worker = self.worker,
                        "the device is lost until the process is restarted"
                    );
                    false
                }
            };
            // The state is set before the tasks end, so that their clients already see the new state.
            if can_rebuild {
                self.shared.heartbeat.beat();
                self.shared.lifecycle.mark_rebuilding();
            } else {
                self.shared.lifecycle.mark_ended();
            }
            // A panic may have left the worker's data inconsistent. If `fail_all` panics as well, dropping the worker
            // answers its tasks.
            let _ = catch_unwind(AssertUnwindSafe(|| worker.fail_all()));
            drop(worker);
            // Drop the tasks in the inbox, which answers them. Otherwise their clients would wait while gigabytes of
            // weights are read.
            while inbox.try_recv().is_ok() {}
            if !can_rebuild {
                return inbox;
            }
            match self.build() {
                Ok(rebuilt) => worker = rebuilt,
                Err(error) => {
                    tracing::error!(worker = self.worker, %error, "cannot rebuild the backend; the worker ends");
                    self.shared.lifecycle.mark_ended();
                    return inbox;
                }
            }
            self.shared.heartbeat.beat();
            self.shared.lifecycle.mark_running();
            tracing::info!(worker = self.worker, "backend rebuilt; serving again");
        }
        self.shared.lifecycle.mark_ended();
        inbox
    }

    fn run(&self, worker: &mut Worker<B>, inbox: &Receiver<Message>) -> Ended {
        match catch_unwind(AssertUnwindSafe(|| run(worker, inbox))) {
            Ok(ended) => ended,
            Err(payload) => {
                self.shared.metrics.panics_total.with_label_values(&["worker"]).inc();
                let panic = clipped(&message(payload.as_ref()));
                tracing::error!(
                    worker = self.worker,
                    panic,
                    "the worker thread panicked outside the backend"
                );
                Ended::BackendFailed
            }
        }
    }

    fn may_rebuild(&self) -> bool {
        let now = self.shared.clock.now();
        let interval = self.shared.settings.worker_rebuild_interval;
        // If the backend fails again so soon after a rebuild, another rebuild would not help.
        let again = |at: Instant| now.saturating_duration_since(at) < interval;
        match (&self.rebuild, self.rebuilt) {
            _ if self.shared.is_draining() => {
                tracing::error!(
                    worker = self.worker,
                    "the backend has failed during shutdown; not rebuilding it"
                );
            }
            (None, _) => tracing::error!(
                worker = self.worker,
                "the backend has failed and cannot be rebuilt"
            ),
            (_, Some(at)) if again(at) => {
                tracing::error!(
                    worker = self.worker,
                    "the backend has failed again soon after its rebuild; giving up"
                );
            }
            _ => return true,
        }
        false
    }

    /// Builds a worker on a new backend and checks it with a warm-up.
    fn build(&mut self) -> Result<Worker<B>, Box<dyn Error + Send + Sync>> {
        tracing::error!(worker = self.worker, "the backend has failed; rebuilding it");
        let rebuild = self.rebuild.as_mut().ok_or("rebuilding is not supported")?;
        if crate::faults::at("engine::rebuild") {
            return Err("an injected fault".into());
        }
        // Loading the models can panic. That must not look like a bug in the worker.
        let built = catch_unwind(AssertUnwindSafe(rebuild));
        let backend = built.unwrap_or_else(|payload| Err(message(payload.as_ref()).into()))?;
        if *backend.models() != *self.shared.models {
            return Err("the models have changed since the start".into());
        }
        let mut worker = Worker::new(backend, Arc::clone(&self.shared));
        if let Err(error) = worker.warm_up() {
            return Err(format!("the new backend fails as well: {error}").into());
        }
        self.shared.metrics.worker_restarts_total.with_label_values(&[&self.worker]).inc();
        self.rebuilt = Some(self.shared.clock.now());
        Ok(worker)
    }
}
