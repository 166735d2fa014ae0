//! The loop of the worker thread. It drains the inbox, takes a turn, and sleeps only if there is nothing to run.

use std::time::Duration;

use tokio::sync::oneshot;

use super::tasks::Submission;
use super::turn::{Next, Worker};
use crate::engine::WarmUpError;
use crate::engine::backend::Backend;
use crate::engine::sync::{Receiver, RecvTimeoutError, TryRecvError};

/// Interval at which an idle worker renews its heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Messages to the worker thread.
pub(crate) enum Message {
    Task(Box<Submission>),
    /// Measure what work costs, then report whether every unit succeeded.
    WarmUp(oneshot::Sender<Result<(), WarmUpError>>),
    /// A flag has changed; wake up and check the flags.
    Wake,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// No task is left and none can arrive any more.
    Done,
    /// The backend has failed its probe, or the worker has panicked.
    BackendFailed,
    /// The backend's device is lost: only a restart of the process can help.
    DeviceLost,
}

pub(super) fn run<B: Backend>(worker: &mut Worker<B>, inbox: &Receiver<Message>) -> Ended {
    loop {
        // `stopping` is read before the inbox is drained. So if it is set, everything that was submitted before the
        // stop is already in the inbox.
        let stopping = worker.shared.is_stopping();
        let open = drain(worker, inbox);
        if !open {
            worker.drain();
        }
        let wait = match worker.turn() {
            Next::Ran => continue,
            Next::WaitUntil(at) => at.saturating_duration_since(worker.now()).min(HEARTBEAT),
            Next::Idle if worker.is_empty() && (!open || stopping) => return Ended::Done,
            // The engine was stopped in the meantime, and the wake-up message for that may already have been consumed.
            // So check again instead of sleeping.
            Next::Idle if !stopping && worker.shared.is_stopping() => continue,
            Next::BackendFailed => return Ended::BackendFailed,
            Next::DeviceLost => return Ended::DeviceLost,
            Next::Idle => HEARTBEAT,
        };
        match inbox.recv_timeout(wait) {
            Ok(message) => receive(worker, message),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Handles all messages in the inbox. Returns false when no sender is left.
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
            // An error means that the caller no longer waits. The estimates have been updated nevertheless.
            let _ = done.send(outcome);
        }
        Message::Wake => {}
    }
}
