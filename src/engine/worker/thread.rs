//! The thread: it drains the inbox, takes a turn, and sleeps only when there is nothing to run.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Next, Submission, Worker};
use crate::engine::backend::Backend;
use crate::engine::shared::Shared;

/// The thread's name, as debuggers and `top` show it.
const NAME: &str = "blip-worker";

/// An idle worker gives a sign of life this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What reaches the worker.
pub(crate) enum Message {
    /// A task.
    Task(Box<Submission>),
    /// Measure what work costs, then say so.
    WarmUp(oneshot::Sender<()>),
    /// A flag has changed: look.
    Wake,
}

/// Starts the thread. It owns the backend until it ends, which `shared` then says.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn<B: Backend + Send + 'static>(
    backend: B,
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(NAME.into()).spawn(move || {
        let mut worker = Worker::new(backend, Arc::clone(&shared));
        // Dropped before the worker: who learns from a dropped reply that the worker is down also sees it in the state.
        let _alive = Alive(shared);
        run(&mut worker, &inbox);
    })
}

struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.died();
        if std::thread::panicking() {
            tracing::error!("the worker thread panicked outside the backend");
        }
    }
}

fn run<B: Backend>(worker: &mut Worker<B>, inbox: &Receiver<Message>) {
    loop {
        let open = drain(worker, inbox);
        if !open {
            worker.drain();
        }
        let wait = match worker.turn() {
            Next::Ran => continue,
            Next::WaitUntil(at) => at.saturating_duration_since(worker.now()).min(HEARTBEAT),
            Next::Idle if worker.is_empty() && (!open || worker.shared.is_stopping()) => return,
            Next::Idle => HEARTBEAT,
        };
        match inbox.recv_timeout(wait) {
            Ok(message) => receive(worker, message),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Takes everything out of the inbox; false when nobody can send any more.
fn drain<B: Backend>(worker: &mut Worker<B>, inbox: &Receiver<Message>) -> bool {
    loop {
        match inbox.try_recv() {
            Ok(message) => receive(worker, message),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

fn receive<B: Backend>(worker: &mut Worker<B>, message: Message) {
    match message {
        Message::Task(submission) => worker.accept(*submission),
        Message::WarmUp(done) => {
            worker.warm_up();
            // Whoever asked may have left; the estimates are there all the same.
            let _ = done.send(());
        }
        Message::Wake => {}
    }
}
