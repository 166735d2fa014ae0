//! [`Submission`]: a task on its way to the worker. [`ActiveTask`]: a task that the worker has accepted and that has no
//! outcome yet.

use std::collections::HashMap;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use crate::engine::admission::TaskReservation;
use crate::engine::ids::FeatureKey;
use crate::engine::plan::Plan;
use crate::engine::{Answered, EngineError};
use crate::task::{ModelId, Task, TaskRun, TokenLogprob};

/// The result of a task: its answer or an error.
pub(crate) type Outcome = Result<Answered, EngineError>;

/// A task on its way to the worker. Dropping it resolves its reply to `WorkerDown`.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) model: ModelId,
    pub(crate) task: Task,
    pub(crate) admitted: Instant,
    pub(crate) deadline: Instant,
    pub(crate) submitted: Instant,
    pub(crate) reservation: TaskReservation,
    pub(crate) reply: oneshot::Sender<Outcome>,
    pub(crate) stream: Option<mpsc::Sender<TokenLogprob>>,
}

/// A task that has no outcome yet.
pub(super) struct ActiveTask {
    pub(super) model: ModelId,
    pub(super) plan: Plan,
    pub(super) admitted: Instant,
    /// When the task was submitted, and which units have run for it.
    pub(super) run: TaskRun,
    pub(super) reservation: TaskReservation,
    pub(super) reply: oneshot::Sender<Outcome>,
    pub(super) stream: Option<mpsc::Sender<TokenLogprob>>,
    /// Images not yet encoded. The flag is true if this task's cache miss started the encoding.
    pub(super) awaited: Vec<(FeatureKey, bool)>,
    /// Images that the task pins, with the number of its rows and groups that attend to each.
    pub(super) pinned: HashMap<FeatureKey, usize>,
}

impl ActiveTask {
    /// Records that a row or group that attended to `image` has ended. Returns true if it was the last such row or
    /// group, so that the image is no longer pinned for this task.
    pub(super) fn release(&mut self, image: FeatureKey) -> bool {
        let Some(users) = self.pinned.get_mut(&image) else { return false };
        *users -= 1;
        let is_last = *users == 0;
        if is_last {
            self.pinned.remove(&image);
        }
        is_last
    }
}
