//! [`WorkerHandle`]: one worker as the [`EngineHandle`](super::EngineHandle) sees it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::WarmUpError;
use super::shared::Shared;
use super::sync::SyncSender;
use super::worker::Message;

/// A backend that is being rebuilt counts as hung only after this many times `worker_hang_limit`, because a rebuild
/// reads gigabytes of weights.
const REBUILD_PATIENCE: u32 = 10;

/// The state that a worker shares, and the inbox of its thread. Every handle of the engine and every admitted call hold
/// one.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: SyncSender<Message>,
}

impl std::fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let worker = self.shared.lifecycle.label();
        f.debug_struct("WorkerHandle").field("worker", &worker).finish_non_exhaustive()
    }
}

impl WorkerHandle {
    /// True if the worker has had no heartbeat for `worker_hang_limit`, or ten times that during a rebuild.
    pub(super) fn is_overdue(&self) -> bool {
        let patience = if self.shared.lifecycle.is_rebuilding() { REBUILD_PATIENCE } else { 1 };
        self.shared.heartbeat.age() > self.shared.settings.worker_hang_limit * patience
    }

    /// Asks the worker to check its flags.
    pub(super) fn wake(&self) {
        // If the inbox is full, the worker wakes up anyway. If it is closed, there is no worker.
        let _ = self.inbox.try_send(Message::Wake);
    }

    /// Runs one small work unit of each kind on the worker; see [`EngineHandle::warm_up`](super::EngineHandle::warm_up).
    pub(super) async fn warm_up(&self) -> Result<(), WarmUpError> {
        let (done, warmed) = oneshot::channel();
        // Before the first request the inbox has room. If it is full or closed, there is no worker that would answer.
        self.inbox.try_send(Message::WarmUp(done)).map_err(|_| WarmUpError::WorkerDown)?;
        warmed.await.unwrap_or(Err(WarmUpError::WorkerDown))
    }
}
