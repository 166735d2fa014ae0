//! The thread's loop: it drains the inbox, takes a turn, and sleeps only when there is nothing to run.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Next, Submission, Worker};
use crate::engine::WarmUpError;
use crate::engine::backend::Backend;
use crate::engine::sync::{Receiver, RecvTimeoutError, TryRecvError};

/// An idle worker gives a sign of life this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What reaches the worker.
pub(crate) enum Message {
    /// A task.
    Task(Box<Submission>),
    /// Measure what work costs, then say whether every unit succeeded.
    WarmUp(oneshot::Sender<Result<(), WarmUpError>>),
    /// A flag has changed: look.
    Wake,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing is left and nothing more can come.
    Done,
    /// The backend does not work any more.
    Sick,
}

pub(super) fn run<B: Backend>(worker: &mut Worker<B>, inbox: &Receiver<Message>) -> Ended {
    loop {
        // Asked before the inbox is emptied: what was submitted before the engine was told to stop is then in there.
        let stopping = worker.shared.is_stopping();
        let open = drain(worker, inbox);
        if !open {
            worker.drain();
        }
        let wait = match worker.turn() {
            Next::Ran => continue,
            Next::WaitUntil(at) => at.saturating_duration_since(worker.now()).min(HEARTBEAT),
            Next::Idle if worker.is_empty() && (!open || stopping) => return Ended::Done,
            // Told to stop since: the message that says so may have been taken out already.
            Next::Idle if !stopping && worker.shared.is_stopping() => continue,
            Next::Sick => return Ended::Sick,
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
            let outcome = worker.warm_up();
            // Whoever asked may have left; the estimates are there all the same.
            let _ = done.send(outcome);
        }
        Message::Wake => {}
    }
}
