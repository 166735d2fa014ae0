//! What `http` holds: admission, submission, replies, drain. Clones share one engine.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::admission::{Estimates, Room};
use super::ids::FeatureKey;
use super::shared::{EngineStats, Shared};
use super::sync::{SyncSender, TrySendError};
use super::worker::{Message, Submission};
use super::{EngineError, EngineSettings, WarmUpError};
use crate::fairness::{CallId, ClientId};
use crate::task::{ModelId, ModelInfo, Task, TaskOutput, TaskTiming, TokenLogprob};

/// Tokens that a stream's reader may be behind before the task is dropped: the default limit on
/// `max_new_tokens`, so that only longer texts can run into it.
const STREAM_TOKENS: usize = 64;

/// How many times the hang limit the building of a backend may take: it reads files of gigabytes.
const REBUILD_PATIENCE: u32 = 10;

/// Between two looks at the worker's last sign of life.
const LOOK: Duration = Duration::from_secs(1);

/// The way into the engine.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: SyncSender<Message>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What the engine can do at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// Admits and computes.
    Ready,
    /// Finishes what was admitted, admits nothing.
    Draining,
    /// The backend failed and is being built anew; nothing is admitted until it works.
    Rebuilding,
    /// The worker thread has ended, or has given no sign of life for `worker_hang_limit`: only a restart helps.
    WorkerDown,
}

/// Room for one call, reserved before any of its work is done; one call is one party in the scheduler's turns.
/// A task's rows are given back when it is over; the rest when this value and every task submitted through it are gone.
#[derive(Debug)]
pub struct Admission {
    handle: EngineHandle,
    room: Room,
    admitted: Instant,
    deadline: Instant,
}

/// A call's reservation, as [`Admission::hold`] gives it out.
#[derive(Debug, Clone)]
pub struct Hold {
    _room: Room,
}

/// A task's answer and where its time went.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// The answer; its variant equals the task's.
    pub output: TaskOutput,
    /// Where the time went.
    pub timing: TaskTiming,
}

/// The pending answer of one task: resolves exactly once. Dropping it tells the engine that the client has left.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Receiver<Result<Answered, EngineError>>,
    /// Resolves when the worker hangs for good: no answer will come.
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The tokens of a single greedy or sampled sequence as they are generated; ends when the reply is ready.
#[derive(Debug)]
pub struct TokenStream(mpsc::Receiver<TokenLogprob>);

impl EngineHandle {
    pub(super) fn new(shared: Arc<Shared>, inbox: SyncSender<Message>) -> Self {
        Self { shared, inbox }
    }

    /// The loaded models; `ModelId(i)` is the i-th.
    #[must_use]
    pub fn models(&self) -> &[ModelInfo] {
        &self.shared.models
    }

    /// Bounds and policy in use.
    #[must_use]
    pub fn settings(&self) -> &EngineSettings {
        &self.shared.settings
    }

    /// What the worker has measured so far; admission tests against it.
    #[must_use]
    pub fn estimates(&self) -> Estimates {
        self.shared.ledger.estimates()
    }

    /// What the worker has done so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.shared.counters.snapshot()
    }

    /// Rows admitted and not yet answered.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shared.ledger.rows()
    }

    /// Time since the worker's last sign of life: about a second when idle, a unit's time when busy.
    #[must_use]
    pub fn heartbeat_age(&self) -> Duration {
        self.shared.heartbeat_age()
    }

    /// What the engine can do at present.
    #[must_use]
    pub fn state(&self) -> EngineState {
        let rebuilding = self.shared.is_rebuilding();
        let patience = if rebuilding { REBUILD_PATIENCE } else { 1 };
        let limit = self.shared.settings.worker_hang_limit * patience;
        if self.heartbeat_age() > limit || !self.shared.is_alive() {
            EngineState::WorkerDown
        } else if rebuilding {
            EngineState::Rebuilding
        } else if self.shared.ledger.is_draining() {
            EngineState::Draining
        } else {
            EngineState::Ready
        }
    }

    /// Has the worker measure what work costs with a small unit of each kind, so that admission has estimates before
    /// the first request; to be called before any. None of it shows in metrics or statistics.
    ///
    /// # Errors
    /// `ModelFailed` when a unit failed or gave numbers that are not finite; `WorkerDown` when the worker has ended,
    /// before or in the middle.
    pub async fn warm_up(&self) -> Result<(), WarmUpError> {
        let (done, warmed) = oneshot::channel();
        // Before the first request the inbox has room; full or closed, nobody would answer.
        self.inbox.try_send(Message::WarmUp(done)).map_err(|_| WarmUpError::WorkerDown)?;
        warmed.await.unwrap_or(Err(WarmUpError::WorkerDown))
    }

    /// Lets a call of `client` in that must be answered by `deadline`, if a row and `bytes` (the declared body) would find
    /// room now. Nothing is reserved yet.
    ///
    /// # Errors
    /// `Overloaded`, `DeadlineExceeded`, `ShuttingDown`, `WorkerDown`.
    pub fn admit(
        &self,
        client: ClientId,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Admission, EngineError> {
        if !self.shared.is_alive() || self.shared.is_rebuilding() {
            return Err(EngineError::WorkerDown);
        }
        let admitted = self.shared.clock.now();
        let room = self.shared.ledger.admit(client, bytes, deadline, admitted)?;
        Ok(Admission { handle: self.clone(), room, admitted, deadline })
    }

    /// From now on nothing is admitted; what was admitted goes on.
    pub fn drain(&self) {
        self.shared.ledger.drain();
        self.wake();
    }

    /// Resolves when the worker thread has ended, whatever the reason.
    pub async fn ended(&self) {
        self.shared.ended().await;
    }

    /// Resolves when the worker can never answer again: its thread has ended, or hangs. Replies that are still awaited
    /// are then `WorkerDown`. Nothing else looks for a hanging worker: somebody has to wait here.
    pub async fn lost(&self) {
        let look = (self.shared.settings.worker_hang_limit / 4).min(LOOK);
        // A process that was stopped for a while finds an old sign of life when it goes on: the worker gets one look
        // more to give another.
        let mut suspected = None;
        loop {
            tokio::select! {
                () = self.shared.ended() => return,
                () = tokio::time::sleep(look) => {}
            }
            let beat = (self.state() == EngineState::WorkerDown).then(|| self.shared.last_beat());
            if beat.is_some() && beat == suspected {
                self.shared.give_up();
                return;
            }
            suspected = beat;
        }
    }

    /// Resolves when no call can be answered any more, whatever it waits for: with `ShuttingDown` at the end of the drain
    /// time, with `WorkerDown` when the worker has ended or hangs.
    pub async fn closed(&self) -> EngineError {
        let (shared, given_up) = (&self.shared, self.shared.given_up());
        tokio::select! {
            biased;
            () = shared.aborted() => EngineError::ShuttingDown,
            () = shared.ended() => EngineError::WorkerDown,
            () = given_up.cancelled() => EngineError::WorkerDown,
        }
    }

    /// Resolves when nothing that was admitted remains.
    pub async fn drained(&self) {
        self.shared.ledger.emptied().await;
    }

    /// Fails every task that is still waiting or running with `ShuttingDown`: the end of the drain time.
    /// Drains too; a unit that is running ends first.
    pub fn abort(&self) {
        self.shared.ledger.drain();
        self.shared.abort();
        self.wake();
    }

    /// The worker ends when nothing is left.
    pub(super) fn stop(&self) {
        self.shared.ledger.drain();
        self.shared.stop();
        self.wake();
    }

    fn wake(&self) {
        // A full inbox wakes the worker by itself, and a closed one has nobody to wake.
        let _ = self.inbox.try_send(Message::Wake);
    }
}

impl Admission {
    /// Reserves the call's remaining room once its shape is known, before its images are decoded:
    /// `rows` in all (`Task::rows` summed over its tasks) and `images` distinct images.
    ///
    /// # Errors
    /// `Overloaded`, `TooManyRows`, `TooLargeForDeadline`, `DeadlineExceeded`, `ShuttingDown` (after an abort: a call
    /// that was admitted before a drain goes on).
    pub fn reserve(&mut self, rows: usize, images: usize) -> Result<(), EngineError> {
        let shared = &self.handle.shared;
        if shared.is_aborted() {
            return Err(EngineError::ShuttingDown);
        }
        let left = self.deadline.saturating_duration_since(shared.clock.now());
        self.room.reserve(rows, images, left)
    }

    /// Reserves `bytes` more: of a body as it arrives, and what is made of it.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn reserve_bytes(&mut self, bytes: u64) -> Result<(), EngineError> {
        self.room.reserve_bytes(bytes)
    }

    /// Refuses a call that would wait so long for something else before its tasks can be submitted: the bounds of its wait
    /// in the queue hold for that, too.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn check_wait(&self, wait: Duration) -> Result<(), EngineError> {
        let left = self.deadline.saturating_duration_since(self.handle.shared.clock.now());
        self.room.check_wait(wait, left)
    }

    /// The call's number, and whose it is.
    #[must_use]
    pub fn call(&self) -> CallId {
        self.room.call()
    }

    /// Keeps what the call has reserved until this is dropped, too: for bytes that outlive the call.
    #[must_use]
    pub fn hold(&self) -> Hold {
        Hold { _room: self.room.clone() }
    }

    /// When the call must be answered.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Hands a task to the worker. Never blocks; refusals arrive through the reply: `TooManyRows` when the task
    /// needs more rows than the call has reserved and not yet used, `WorkerDown`, `ShuttingDown`.
    pub fn submit(&self, model: ModelId, task: Task) -> Reply {
        self.send(model, task, None)
    }

    /// As [`submit`](Self::submit) for a task of one greedy or sampled sequence, with its tokens as they come.
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
        if self.handle.shared.is_rebuilding() || crate::faults::at("engine::submit") {
            return self.refused(EngineError::WorkerDown);
        }
        let (sender, reply) = oneshot::channel();
        let shared = &self.handle.shared;
        let claim = match self.room.claim(task.rows(), self.distinct_images(model, &task)) {
            Ok(claim) if !shared.is_aborted() => claim,
            Ok(_) => return self.refused(EngineError::ShuttingDown),
            Err(error) => return self.refused(error),
        };
        let submission = Submission {
            model,
            task,
            admitted: self.admitted,
            deadline: self.deadline,
            submitted: shared.clock.now(),
            claim,
            reply: sender,
            stream,
        };
        match self.handle.inbox.try_send(Message::Task(Box::new(submission))) {
            // A message dropped before a closed inbox resolves the reply as `WorkerDown`.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Reply::new(reply, shared),
            Err(TrySendError::Full(_)) => {
                // Admission bounds tasks below the inbox's size; should that ever fail, it is load, not a panic.
                let retry_after = shared.ledger.retry_after();
                self.refused(EngineError::Overloaded { retry_after })
            }
        }
    }

    /// A reply that is there already.
    fn refused(&self, error: EngineError) -> Reply {
        let (sender, reply) = oneshot::channel();
        // The receiver is in hand, so this arrives.
        let _ = sender.send(Err(error));
        Reply::new(reply, &self.handle.shared)
    }

    fn distinct_images(&self, model: ModelId, task: &Task) -> usize {
        let Some(info) = self.handle.models().get(model.0) else { return 0 };
        let mut keys: Vec<FeatureKey> = Vec::new();
        for image in task.images() {
            let key = FeatureKey::new(info.tower, image);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.len()
    }
}

impl Reply {
    fn new(answer: oneshot::Receiver<Result<Answered, EngineError>>, shared: &Shared) -> Self {
        Self { answer, given_up: Box::pin(shared.given_up().cancelled_owned()) }
    }
}

impl Future for Reply {
    type Output = Result<Answered, EngineError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(reply) = Pin::new(&mut self.answer).poll(context) {
            return Poll::Ready(reply.unwrap_or(Err(EngineError::WorkerDown)));
        }
        self.given_up.as_mut().poll(context).map(|()| Err(EngineError::WorkerDown))
    }
}

impl TokenStream {
    /// The next token, or `None` when the sequence has ended.
    pub async fn next(&mut self) -> Option<TokenLogprob> {
        self.0.recv().await
    }
}
