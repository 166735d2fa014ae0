//! What `http` holds: admission, submission, replies, drain. Clones share one engine.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::EngineError;
use crate::task::{ModelId, ModelInfo, Task, TaskOutput, TaskTiming, TokenLogprob};

/// The way into the engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    models: Arc<[ModelInfo]>,
}

/// What the engine can do at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// Admits and computes.
    Ready,
    /// Finishes what was admitted, admits nothing.
    Draining,
    /// The worker thread has ended.
    WorkerDown,
}

/// Room for one call, reserved before any of its work is done; one call is one party in the scheduler's turns.
/// The room is given back when this value and every task submitted through it are gone.
#[derive(Debug)]
pub struct Admission {
    deadline: Instant,
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
pub struct Reply(tokio::sync::oneshot::Receiver<Result<Answered, EngineError>>);

/// The tokens of a single greedy or sampled sequence as they are generated; ends when the reply is ready.
#[derive(Debug)]
pub struct TokenStream(tokio::sync::mpsc::Receiver<TokenLogprob>);

impl EngineHandle {
    /// The loaded models; `ModelId(i)` is the i-th.
    #[must_use]
    pub fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    /// What the engine can do at present.
    #[must_use]
    pub fn state(&self) -> EngineState {
        unreachable!("skeleton")
    }

    /// Reserves one row and `bytes` (the declared body) for a call that must be answered by `deadline`.
    ///
    /// # Errors
    /// `Overloaded`, `ShuttingDown`, `WorkerDown`; nothing is reserved then.
    pub fn admit(&self, _bytes: u64, _deadline: Instant) -> Result<Admission, EngineError> {
        unreachable!("skeleton")
    }

    /// From now on nothing is admitted; what was admitted goes on.
    pub fn drain(&self) {}

    /// Resolves when nothing that was admitted remains.
    pub async fn drained(&self) {}

    /// Fails every task that is still waiting or running with `ShuttingDown`: the end of the drain time.
    pub fn abort(&self) {}
}

impl Admission {
    /// Reserves the call's remaining room once its shape is known, before its images are decoded:
    /// `rows` in all (`Task::rows` summed over its tasks) and `images` distinct images.
    ///
    /// # Errors
    /// `Overloaded`, `TooManyRows`, `TooLargeForDeadline`, `DeadlineExceeded`, `ShuttingDown`.
    pub fn reserve(&mut self, _rows: usize, _images: usize) -> Result<(), EngineError> {
        unreachable!("skeleton")
    }

    /// Reserves `bytes` more (a body without a declared length, as it arrives).
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn reserve_bytes(&mut self, _bytes: u64) -> Result<(), EngineError> {
        unreachable!("skeleton")
    }

    /// When the call must be answered.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Hands a task to the worker. Never blocks; refusals arrive through the reply.
    pub fn submit(&self, _model: ModelId, _task: Task) -> Reply {
        unreachable!("skeleton")
    }

    /// As [`submit`](Self::submit) for a task of one greedy or sampled sequence, with its tokens as they come.
    pub fn submit_streaming(&self, _model: ModelId, _task: Task) -> (Reply, TokenStream) {
        unreachable!("skeleton")
    }
}

impl Future for Reply {
    type Output = Result<Answered, EngineError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|reply| reply.unwrap_or(Err(EngineError::WorkerDown)))
    }
}

impl TokenStream {
    /// The next token, or `None` when the sequence has ended.
    pub async fn next(&mut self) -> Option<TokenLogprob> {
        self.0.recv().await
    }
}
