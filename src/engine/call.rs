//! An admitted call and the replies to its tasks. [`EngineHandle`] admits calls; `http` submits tasks through them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::admission::CallReservation;
use super::shared::Shared;
use super::sync::TrySendError;
use super::worker::{Message, Submission};
use super::worker_handle::WorkerHandle;
use super::{EngineError, EngineHandle};
use crate::fairness::CallId;
use crate::task::{ModelId, Task, TaskOutput, TaskRun, TokenLogprob};

/// Number of tokens by which a stream's reader may lag behind. If it lags further, its task is cancelled. Equals the
/// default limit on `max_new_tokens`, so with that limit no reader can lag too far.
const STREAM_TOKENS: usize = 64;

/// An admitted call, with the capacity that is reserved for it before any of its work is done.
///
/// In the scheduler's round robin a call gets one turn at a time, however many tasks it has. The rows of a task are
/// released when the task ends. The remaining capacity is released when this value has been dropped and all tasks
/// submitted through it have ended.
#[derive(Debug)]
pub struct Admission {
    pub(super) engine: EngineHandle,
    /// The worker that runs the call.
    pub(super) worker: WorkerHandle,
    pub(super) reservation: CallReservation,
    pub(super) admitted: Instant,
    pub(super) deadline: Instant,
    /// True once the worker has been chosen for good.
    pub(super) is_placed: bool,
}

/// A guard that keeps a call's reservation alive; see [`Admission::hold`].
#[derive(Debug, Clone)]
pub struct ReservationGuard {
    _reservation: CallReservation,
}

/// A task's answer, and when the worker worked on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The answer. Its variant matches the task's.
    pub output: TaskOutput,
    /// When the task waited, and when its work units ran.
    pub run: TaskRun,
}

/// The pending answer of one task: a future that resolves exactly once. Dropping it cancels the task, for example when
/// the client has disconnected.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Receiver<Result<Answered, EngineError>>,
    /// Resolves when a worker is declared hung, because then the answer will never come.
    hung: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The tokens of a single greedy or sampled sequence, as they are generated. The stream ends when the reply is ready.
#[derive(Debug)]
pub struct TokenStream(mpsc::Receiver<TokenLogprob>);

impl Admission {
    /// Reserves capacity for the call, once its rows and images are known and before its images are decoded. This is
    /// the second step of admission control. `rows` is the total over the call's tasks (`TaskShape::rows`), `images`
    /// the number of distinct images.
    ///
    /// Calls are admitted in the order of their heads, and their bodies may take long to arrive. So at the first
    /// reservation, the call moves to another worker if the queue of that one is shorter now.
    ///
    /// # Errors
    /// `Overloaded`, `TooManyRows`, `TooLargeForDeadline`, `DeadlineExceeded`, `ShuttingDown`. `ShuttingDown`
    /// occurs only after an abort, because a drain lets admitted calls finish.
    pub fn reserve(&mut self, rows: usize, images: usize) -> Result<(), EngineError> {
        self.reserve_with_bytes(rows, images, 0)
    }

    /// Does the same as [`reserve`](Self::reserve) and then [`reserve_bytes`](Self::reserve_bytes). The call does not move to
    /// a worker that has no room for these bytes.
    ///
    /// # Errors
    /// Those of both.
    pub fn reserve_with_bytes(
        &mut self,
        rows: usize,
        images: usize,
        bytes: u64,
    ) -> Result<(), EngineError> {
        let shared = &self.worker.shared;
        if shared.is_aborted() {
            return Err(EngineError::ShuttingDown);
        }
        let left = self.deadline.saturating_duration_since(shared.clock.now());
        if !std::mem::replace(&mut self.is_placed, true) {
            self.choose_worker_again((rows, images), bytes, left);
        }
        self.reservation.reserve(rows, images, left)?;
        self.reservation.reserve_bytes(bytes)
    }

    /// Moves the call to another worker if that one has fewer rows and accepts the call with `bytes` more bytes.
    fn choose_worker_again(&mut self, work: (usize, usize), bytes: u64, left: Duration) {
        let (call, held) = (self.call(), self.reservation.bytes());
        let current = &self.worker.shared.admission;
        let accepts = |worker: &Shared| {
            let is_current = Arc::ptr_eq(&worker.admission, current);
            let more = bytes.saturating_add(if is_current { 0 } else { held });
            worker.admission.would_reserve(call, work, more, left)
        };
        if let Some(worker) = self.engine.shorter_queue(&self.worker, accepts)
            && self.reservation.move_to(&worker.shared.admission)
        {
            self.worker = worker.clone();
        }
    }

    /// Reserves `bytes` more bytes: for parts of the body as they arrive, and for the data decoded from it.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn reserve_bytes(&mut self, bytes: u64) -> Result<(), EngineError> {
        self.reservation.reserve_bytes(bytes)
    }

    /// Makes the call, with the call of which it is a part, hold at least `bytes` bytes, and returns a guard that keeps them
    /// until it is dropped.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn hold_bytes(&self, bytes: u64) -> Result<ReservationGuard, EngineError> {
        self.reservation.raise_bytes(bytes)?;
        Ok(self.hold())
    }

    /// True if the call is bulk work.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        self.call().client.is_bulk()
    }

    /// Reserves capacity for a call of bulk work, as [`reserve`](Self::reserve) and
    /// [`reserve_bytes`](Self::reserve_bytes) do for others. Waits until there is room for all of it.
    ///
    /// # Errors
    /// `TooManyRows`; `ShuttingDown` after an abort.
    pub async fn reserve_when_room(
        &mut self,
        rows: usize,
        images: usize,
        bytes: u64,
    ) -> Result<(), EngineError> {
        let lifecycle = self.engine.lifecycle();
        tokio::select! {
            biased;
            () = lifecycle.aborted() => Err(EngineError::ShuttingDown),
            reserved = self.reservation.reserve_when_room(rows, images, bytes) => reserved,
        }
    }

    /// Admits a further call for a part of this one, with its own deadline, to the worker with the shortest queue. It is
    /// admitted even during a drain, because it belongs to an admitted call, and reserves nothing yet.
    #[must_use]
    pub fn admit_part(&self, deadline: Instant) -> Self {
        let worker = self.engine.shortest_queue(self.is_bulk(), |_| true).unwrap_or(&self.worker);
        let admitted = worker.shared.clock.now();
        let reservation = worker.shared.admission.admit_part(&self.reservation);
        self.engine.admission(worker, reservation, admitted, deadline)
    }

    /// Rejects the call if `wait` is too long. `wait` is the call's estimated wait outside the engine, before its tasks
    /// can be submitted. The limits are the same as for the wait in the engine's queue.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn check_wait(&self, wait: Duration) -> Result<(), EngineError> {
        let left = self.deadline.saturating_duration_since(self.worker.shared.clock.now());
        self.reservation.check_wait(wait, left)
    }

    /// Returns the id of the call, which includes its client.
    #[must_use]
    pub fn call(&self) -> CallId {
        self.reservation.call()
    }

    /// Returns a guard that keeps the call's reservation until the guard is dropped. Bytes that outlive the call need
    /// such a guard.
    #[must_use]
    pub fn hold(&self) -> ReservationGuard {
        ReservationGuard { _reservation: self.reservation.clone() }
    }

    /// Releases the rows and images that no task has used. Call this when all tasks have been submitted.
    pub fn release_work(&self) {
        self.reservation.release_work();
    }

    /// Returns the time by which the call must be answered.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Hands a task to the worker without blocking. If the task is rejected, the reply resolves to the error:
    /// `WorkerDown`; `ShuttingDown`; `TooManyRows` if the task needs more rows than the call has reserved and not yet
    /// used; or `Overloaded` if the inbox is full.
    pub fn submit(&self, model: ModelId, task: Task) -> Reply {
        self.send(model, task, None)
    }

    /// Like [`submit`](Self::submit), but also streams the tokens. The task must have a single greedy or sampled
    /// sequence.
    pub fn submit_streaming(&self, model: ModelId, task: Task) -> (Reply, TokenStream) {
        let (sender, tokens) = mpsc::channel(STREAM_TOKENS);
        (self.send(model, task, Some(sender)), TokenStream(tokens))
    }

    fn send(
        &self,
        model: ModelId,
        task: Task,
        stream: Option<mpsc::Sender<TokenLogprob>>,
    ) -> Reply {
        if !self.worker.shared.lifecycle.takes_tasks() || crate::faults::at("engine::submit") {
            return self.refused(EngineError::WorkerDown);
        }
        let (sender, reply) = oneshot::channel();
        let shared = &self.worker.shared;
        let task_reservation = match self
            .reservation
            .reserve_task(task.shape().rows, task.distinct_images().0.len())
        {
            Ok(reserved) if !shared.is_aborted() => reserved,
            Ok(_) => return self.refused(EngineError::ShuttingDown),
            Err(error) => return self.refused(error),
        };
        let submission = Submission {
            model,
            task,
            admitted: self.admitted,
            deadline: self.deadline,
            submitted: shared.clock.now(),
            reservation: task_reservation,
            reply: sender,
            stream,
        };
        match self.worker.inbox.try_send(Message::Task(Box::new(submission))) {
            // The closed inbox drops the message, which resolves the reply as `WorkerDown`.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Reply::new(reply, shared),
            Err(TrySendError::Full(_)) => {
                // Admission control keeps the number of tasks below the inbox's size. If the inbox is full
                // nevertheless, the task is rejected as `Overloaded` instead of causing a panic.
                let retry_after = shared.admission.retry_after();
                self.refused(EngineError::Overloaded { retry_after })
            }
        }
    }

    /// Returns a reply that has already resolved to `error`.
    fn refused(&self, error: EngineError) -> Reply {
        let (sender, reply) = oneshot::channel();
        // The receiver is alive, so sending cannot fail.
        let _ = sender.send(Err(error));
        Reply::new(reply, &self.worker.shared)
    }
}

impl Reply {
    fn new(answer: oneshot::Receiver<Result<Answered, EngineError>>, shared: &Shared) -> Self {
        Self { answer, hung: Box::pin(shared.lifecycle.process().hung()) }
    }
}

impl Future for Reply {
    type Output = Result<Answered, EngineError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(reply) = Pin::new(&mut self.answer).poll(context) {
            return Poll::Ready(reply.unwrap_or(Err(EngineError::WorkerDown)));
        }
        self.hung.as_mut().poll(context).map(|()| Err(EngineError::WorkerDown))
    }
}

impl TokenStream {
    /// Waits for the next token. Returns `None` when the sequence has ended.
    pub async fn next(&mut self) -> Option<TokenLogprob> {
        self.0.recv().await
    }
}
