//! The engine's API for `http`: admission, submission, replies, drain. Clones share one engine.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::admission::{CallReservation, Estimates};
use super::shared::{EngineStats, Shared};
use super::sync::{SyncSender, TrySendError};
use super::worker::{Message, Submission};
use super::{EngineError, EngineSettings, Phase, WarmUpError};
use crate::fairness::{CallId, ClientId};
use crate::task::{ModelId, ModelInfo, Task, TaskOutput, TaskRun, TokenLogprob};

/// Number of tokens by which a stream's reader may lag behind. If it lags further, its task is cancelled. Equals the
/// default limit on `max_new_tokens`, so with that limit no reader can lag too far.
const STREAM_TOKENS: usize = 64;

/// A backend that is being rebuilt counts as hung only after this many times `worker_hang_limit`, because a rebuild
/// reads gigabytes of weights.
const REBUILD_PATIENCE: u32 = 10;

/// Longest interval between two checks of the worker's heartbeat.
const LOOK: Duration = Duration::from_secs(1);

/// The API of the engine, for `http` and `app`. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: SyncSender<Message>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

/// An admitted call, with the capacity that is reserved for it before any of its work is done.
///
/// In the scheduler's round robin a call gets one turn at a time, however many tasks it has. The rows of a task are
/// released when the task ends. The remaining capacity is released when this value has been dropped and all tasks
/// submitted through it have ended.
#[derive(Debug)]
pub struct Admission {
    handle: EngineHandle,
    reservation: CallReservation,
    admitted: Instant,
    deadline: Instant,
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
    /// Resolves when the worker is declared hung, because then the answer will never come.
    hung: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The tokens of a single greedy or sampled sequence, as they are generated. The stream ends when the reply is ready.
#[derive(Debug)]
pub struct TokenStream(mpsc::Receiver<TokenLogprob>);

impl EngineHandle {
    pub(super) fn new(shared: Arc<Shared>, inbox: SyncSender<Message>) -> Self {
        Self { shared, inbox }
    }

    /// Returns the loaded models; `ModelId(i)` is at index i.
    #[must_use]
    pub fn models(&self) -> &[ModelInfo] {
        &self.shared.models
    }

    /// Returns the limits and the scheduling policy in use.
    #[must_use]
    pub fn settings(&self) -> &EngineSettings {
        &self.shared.settings
    }

    /// Returns the costs that the worker has measured so far, which admission control uses.
    #[must_use]
    pub fn estimates(&self) -> Estimates {
        self.shared.admission.estimates()
    }

    /// Returns counts of what the worker has done so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot()
    }

    /// Returns the number of rows that are reserved for calls and tasks in progress.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shared.admission.rows()
    }

    /// Returns the time since the worker's last heartbeat. It is at most about a second when the worker is idle, and at
    /// most the time of one work unit when it is busy.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.shared.heartbeat.age()
    }

    /// Returns the current phase of the process, as the engine sees it. The phase is also `Down` if the worker has had
    /// no heartbeat for `worker_hang_limit` (ten times that during a rebuild); [`lost`](Self::lost) later confirms that
    /// the worker is hung.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let phase = self.shared.lifecycle.phase();
        let patience = if phase == Phase::Rebuilding { REBUILD_PATIENCE } else { 1 };
        let limit = self.shared.settings.worker_hang_limit * patience;
        if self.heartbeat_age() > limit { Phase::Down } else { phase }
    }

    /// Runs one small work unit of each kind, so that admission control has cost estimates before the first request.
    /// Call this before any request. The warm-up does not show in metrics or statistics.
    ///
    /// # Errors
    /// `ModelFailed` if a unit fails or returns non-finite numbers; `WorkerDown` if the worker ends before or during
    /// the warm-up.
    pub async fn warm_up(&self) -> Result<(), WarmUpError> {
        let (done, warmed) = oneshot::channel();
        // Before the first request the inbox has room. If it is full or closed, there is no worker that would answer.
        self.inbox.try_send(Message::WarmUp(done)).map_err(|_| WarmUpError::WorkerDown)?;
        warmed.await.unwrap_or(Err(WarmUpError::WorkerDown))
    }

    /// Admits a call of `client` that must be answered by `deadline`, if one row and `bytes` (the declared body length)
    /// would fit now. This is the first step of admission control; it reserves nothing yet.
    ///
    /// # Errors
    /// `Overloaded`, `DeadlineExceeded`, `ShuttingDown`, `WorkerDown`.
    pub fn admit(
        &self,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Admission, EngineError> {
        if !self.shared.lifecycle.worker_takes_tasks() {
            return Err(EngineError::WorkerDown);
        }
        let admitted = self.shared.clock.now();
        let reservation = self.shared.admission.admit(client, bytes, deadline, admitted)?;
        Ok(Admission { handle: self.clone(), reservation, admitted, deadline })
    }

    /// Admits a call of the client's bulk work. It reserves nothing yet, and is not rejected when the engine is busy.
    ///
    /// # Errors
    /// `ShuttingDown`, `WorkerDown`.
    pub fn admit_bulk(
        &self,
        client: ClientId,
        deadline: Instant,
    ) -> Result<Admission, EngineError> {
        if !self.shared.lifecycle.worker_takes_tasks() {
            return Err(EngineError::WorkerDown);
        }
        let admitted = self.shared.clock.now();
        let reservation = self.shared.admission.admit_bulk(client)?;
        Ok(Admission { handle: self.clone(), reservation, admitted, deadline })
    }

    /// Starts draining: new calls are rejected, admitted calls continue.
    pub fn drain(&self) {
        self.shared.drain();
        self.wake();
    }

    /// Resolves when the engine drains: it admits no new calls from now on.
    pub async fn draining(&self) {
        self.shared.lifecycle.draining().await;
    }

    /// Resolves when the worker thread has ended, for any reason.
    pub async fn ended(&self) {
        self.shared.lifecycle.ended().await;
    }

    /// Resolves when the worker can never answer again because its thread has ended or hangs. Replies that are still
    /// awaited then resolve to `WorkerDown`. Nothing else detects a hanging worker, so some task must await this
    /// function.
    pub async fn lost(&self) {
        let look = (self.shared.settings.worker_hang_limit / 4).min(LOOK);
        // After the process was suspended (SIGSTOP), the last heartbeat looks old even if the worker is healthy. So the
        // worker gets one more interval to renew the heartbeat.
        let mut suspected = None;
        loop {
            tokio::select! {
                biased;
                () = self.shared.lifecycle.ended() => return,
                () = tokio::time::sleep(look) => {}
            }
            let beat = (self.phase() == Phase::Down).then(|| self.shared.heartbeat.last());
            if beat.is_some() && beat == suspected {
                self.shared.lifecycle.worker_hangs();
                return;
            }
            suspected = beat;
        }
    }

    /// Resolves when no call can be answered any more. The result is `ShuttingDown` at the end of the drain time, or
    /// `WorkerDown` if the worker has ended or hangs.
    pub async fn closed(&self) -> EngineError {
        let lifecycle = &self.shared.lifecycle;
        tokio::select! {
            biased;
            () = lifecycle.aborted() => EngineError::ShuttingDown,
            () = lifecycle.ended() => EngineError::WorkerDown,
            () = lifecycle.hung() => EngineError::WorkerDown,
        }
    }

    /// Resolves when all admitted calls have ended and released their reservations.
    pub async fn drained(&self) {
        self.shared.admission.emptied().await;
    }

    /// Ends the drain time: stops admission, and ends every waiting or running task with `ShuttingDown`. A work unit
    /// in progress completes first.
    pub fn abort(&self) {
        self.shared.abort();
        self.wake();
    }

    /// Asks the worker to end when it has no tasks left.
    pub(super) fn stop(&self) {
        self.shared.stop();
        self.wake();
    }

    fn wake(&self) {
        // If the inbox is full, the worker wakes up anyway. If it is closed, there is no worker.
        let _ = self.inbox.try_send(Message::Wake);
    }
}

impl Admission {
    /// Reserves capacity for the call, once its rows and images are known and before its images are decoded. This is
    /// the second step of admission control. `rows` is the total over the call's tasks (`TaskShape::rows`), `images`
    /// the number of distinct images.
    ///
    /// # Errors
    /// `Overloaded`, `TooManyRows`, `TooLargeForDeadline`, `DeadlineExceeded`, `ShuttingDown`. `ShuttingDown`
    /// occurs only after an abort, because a drain lets admitted calls finish.
    pub fn reserve(&mut self, rows: usize, images: usize) -> Result<(), EngineError> {
        let shared = &self.handle.shared;
        if shared.lifecycle.is_aborted() {
            return Err(EngineError::ShuttingDown);
        }
        let left = self.deadline.saturating_duration_since(shared.clock.now());
        self.reservation.reserve(rows, images, left)
    }

    /// Reserves `bytes` more bytes: for parts of the body as they arrive, and for the data decoded from it.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn reserve_bytes(&mut self, bytes: u64) -> Result<(), EngineError> {
        self.reservation.reserve_bytes(bytes)
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
        let lifecycle = &self.handle.shared.lifecycle;
        tokio::select! {
            biased;
            () = lifecycle.aborted() => Err(EngineError::ShuttingDown),
            reserved = self.reservation.reserve_when_room(rows, images, bytes) => reserved,
        }
    }

    /// Admits a further call for a part of this one, with its own deadline. It is admitted even during a drain, because
    /// it belongs to an admitted call, and reserves nothing yet.
    #[must_use]
    pub fn admit_part(&self, deadline: Instant) -> Self {
        let admitted = self.handle.shared.clock.now();
        let reservation = self.reservation.admit_part();
        Self { handle: self.handle.clone(), reservation, admitted, deadline }
    }

    /// Rejects the call if `wait` is too long. `wait` is the call's estimated wait outside the engine, before its tasks
    /// can be submitted. The limits are the same as for the wait in the engine's queue.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn check_wait(&self, wait: Duration) -> Result<(), EngineError> {
        let left = self.deadline.saturating_duration_since(self.handle.shared.clock.now());
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
        if !self.handle.shared.lifecycle.worker_takes_tasks() || crate::faults::at("engine::submit")
        {
            return self.refused(EngineError::WorkerDown);
        }
        let (sender, reply) = oneshot::channel();
        let shared = &self.handle.shared;
        let task_reservation = match self
            .reservation
            .reserve_task(task.shape().rows, task.distinct_images().0.len())
        {
            Ok(reserved) if !shared.lifecycle.is_aborted() => reserved,
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
        match self.handle.inbox.try_send(Message::Task(Box::new(submission))) {
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
        Reply::new(reply, &self.handle.shared)
    }
}

impl Reply {
    fn new(answer: oneshot::Receiver<Result<Answered, EngineError>>, shared: &Shared) -> Self {
        Self { answer, hung: Box::pin(shared.lifecycle.hung()) }
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
