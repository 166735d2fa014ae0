//! [`Worker`]: the backend, the scheduler, the feature cache and all tasks. [`Worker::accept`] takes over a task.
//! [`Worker::turn`] runs one unit (see `units`) and sends outcomes. `thread` calls both; tests call them without a
//! thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::items::{ItemOwner, WaitingGroup, WaitingRow, WorkItems};
use super::meter::Meter;
use super::probe::passes_probe;
use super::tasks::{ActiveTask, Outcome, Submission};
use super::warm_up::TrialRun;
use crate::engine::backend::Backend;
use crate::engine::features::{Features, Lookup};
use crate::engine::ids::{FeatureKey, ItemId, TaskId};
use crate::engine::plan::{Plan, PlanError, Work};
use crate::engine::scheduler::{Decision, GroupEntry, RowEntry, Scheduler, TaskTraits};
use crate::engine::shared::Shared;
use crate::engine::{Answered, EngineError, WarmUpError};
use crate::faults;
use crate::task::{Caption, DecodeMode, ModelId, ModelInfo, Task, TaskRun};

/// What the worker's thread does after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A unit ran. The thread takes the next turn at once.
    Ran,
    /// Nothing can run before this time, unless something arrives.
    WaitUntil(Instant),
    /// Nothing can run until something arrives.
    Idle,
    /// The backend has failed its probe.
    BackendFailed,
    /// The backend's device is lost.
    DeviceLost,
}

/// Owner of the backend, the feature cache and all tasks.
pub(super) struct Worker<B: Backend> {
    pub(super) backend: B,
    pub(super) shared: Arc<Shared>,
    pub(super) scheduler: Scheduler,
    pub(super) features: Features<B::EncoderStates>,
    pub(super) tasks: BTreeMap<TaskId, ActiveTask>,
    /// The rows and groups of all tasks. Between two units it contains the same items as the scheduler.
    pub(super) items: WorkItems<B::EncoderStates, B::Group>,
    next_id: u64,
    pub(super) meter: Meter,
    /// The model whose last failure may be the backend's fault. Such failures are a unit without any result, a group
    /// that could not be opened, and an output that is not finite. The next turn probes the backend.
    pub(super) suspect: Option<ModelId>,
    /// Outcomes of this turn, sent at its end.
    outbox: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

impl<B: Backend> Worker<B> {
    pub(super) fn new(backend: B, shared: Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let tokens = |model: &ModelInfo| model.vision.as_ref().map_or(0, |vision| vision.tokens);
        let image_tokens: Vec<usize> = shared.models.iter().map(tokens).collect();
        Self {
            backend,
            scheduler: Scheduler::new(settings.clone(), &image_tokens),
            features: Features::new(settings.feature_cache_bytes, settings.feature_cache_ttl),
            tasks: BTreeMap::new(),
            items: WorkItems::new(),
            next_id: 0,
            meter: Meter::new(Arc::clone(&shared)),
            suspect: None,
            outbox: Vec::new(),
            shared,
        }
    }

    /// True if every task has its outcome.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts draining: from now on no item is held back for the linger time.
    pub(super) fn drain(&mut self) {
        self.scheduler.drain();
    }

    /// Plans a task for a model; `Misfit` if there is no such model.
    fn plan(&self, model: ModelId, task: Task) -> Result<Plan, PlanError> {
        if faults::at("engine::accept") {
            return Err(PlanError::Misfit("an injected fault"));
        }
        let info = self.shared.models.get(model.0).ok_or(PlanError::Misfit("no such model"))?;
        Plan::try_new(info, task)
    }

    /// Takes over a task, which from now on gets exactly one outcome.
    pub(super) fn accept(&mut self, submission: Submission) {
        let Submission { model, task, admitted, deadline, submitted, reservation, reply, stream } =
            submission;
        self.meter.record_submitted();
        let id = TaskId(self.fresh_id());
        let decodes = matches!(task, Task::Caption(Caption { mode: DecodeMode::Generate(_), .. }));
        let traits =
            TaskTraits { decodes: decodes.then_some(model), is_streamed: stream.is_some() };
        let plan = match self.plan(model, task) {
            Ok(plan) => plan,
            Err(error) => {
                drop(reservation);
                self.meter.record_outcome(Some(&error.into()));
                self.outbox.push((reply, Err(error.into())));
                return;
            }
        };
        let (now, call) = (self.shared.clock.now(), reservation.call());
        let images = plan.images().to_vec();
        let start = plan.start();
        let active = ActiveTask {
            model,
            plan,
            admitted,
            run: TaskRun::new(submitted),
            reservation,
            reply,
            stream,
            awaited: Vec::new(),
            pinned: HashMap::new(),
        };
        self.tasks.insert(id, active);
        self.scheduler.add_task(id, call, deadline, traits);
        self.enqueue(id, start, now);
        for (key, pixels) in images {
            let found = self.features.request(key, id, &pixels, now);
            self.meter.record_lookup(&found);
            let missed = matches!(found, Lookup::Miss);
            let reservation = &mut self.task(id).reservation;
            if missed {
                reservation.record_cache_miss();
            } else {
                reservation.record_cache_hit();
            }
            if let Lookup::Hit(states) = found {
                self.image_ready(id, key, &states, now);
            } else {
                let bytes = self.backend.feature_bytes(key.output.tower);
                self.scheduler.push_image(id, key, bytes, now);
                self.task(id).awaited.push((key, missed));
            }
        }
        self.complete_task(id);
    }

    /// Takes one turn: ends tasks that were aborted, have expired or were cancelled, runs one unit if one is ready, and
    /// sends the outcomes.
    pub(super) fn turn(&mut self) -> Next {
        self.shared.heartbeat.beat();
        faults::at("engine::turn");
        // The clock is read only once. So the unit is chosen at the same instant at which due tasks were removed, and
        // cannot contain a task that became due in between.
        let now = self.shared.clock.now();
        self.reap_finished(now);
        if self.meter.device_lost() {
            self.send();
            return Next::DeviceLost;
        }
        if let Some(model) = self.suspect.take()
            && !passes_probe(&mut self.trial_run(), model)
        {
            self.send();
            return Next::BackendFailed;
        }
        let next = match self.scheduler.decide(now, self.features.pinned_bytes()) {
            Decision::Run(unit) => {
                self.run(unit);
                Next::Ran
            }
            Decision::WaitUntil(at) => {
                Next::WaitUntil(self.scheduler.next_deadline().map_or(at, |due| at.min(due)))
            }
            Decision::Idle => Next::Idle,
        };
        self.features.expire(now);
        self.publish();
        self.send();
        next
    }

    /// Ends all tasks with `WorkerDown`.
    pub(super) fn fail_all(&mut self) {
        for task in self.tasks.keys().copied().collect::<Vec<_>>() {
            self.end_with_error(task, EngineError::WorkerDown);
        }
        self.publish();
        self.send();
    }

    /// If the engine has been aborted, ends all tasks. Otherwise ends the tasks that are past their deadline, then
    /// those whose client has disconnected. A client may also disconnect because the deadline has passed. Because
    /// deadlines are checked first, the task of such a client counts as expired and not as cancelled.
    fn reap_finished(&mut self, now: Instant) {
        if self.shared.is_aborted() {
            for task in self.tasks.keys().copied().collect::<Vec<_>>() {
                self.end_with_error(task, EngineError::ShuttingDown);
            }
        }
        if self.shared.is_draining() {
            self.scheduler.drain();
        }
        for task in self.scheduler.due(now) {
            self.end_with_error(task, EngineError::DeadlineExceeded);
        }
        let gone = |(_, active): &(&TaskId, &ActiveTask)| active.reply.is_closed();
        let departed: Vec<TaskId> = self.tasks.iter().filter(gone).map(|(&task, _)| task).collect();
        for task in departed {
            self.meter.record_cancelled();
            self.remove(task);
        }
    }

    /// Gives `task` the features of an encoded image, which are already pinned for it, and enqueues the work that is
    /// now ready.
    pub(super) fn image_ready(
        &mut self,
        task: TaskId,
        key: FeatureKey,
        states: &B::EncoderStates,
        now: Instant,
    ) {
        let Some(active) = self.tasks.get_mut(&task) else {
            self.features.unpin(key);
            return;
        };
        if active.awaited.contains(&(key, true)) {
            active.reservation.record_encoded();
        }
        active.awaited.retain(|&(awaited, _)| awaited != key);
        // Count one extra user of the image until the task's rows are enqueued, so that the image is not unpinned too
        // early.
        active.pinned.insert(key, 1);
        let work = active.plan.image_ready(key, states);
        self.enqueue(task, work, now);
        self.release(task, Some(key));
    }

    /// Hands new work of a task to the scheduler.
    pub(super) fn enqueue(
        &mut self,
        task: TaskId,
        work: Vec<Work<B::EncoderStates>>,
        now: Instant,
    ) {
        let model = self.task(task).model;
        for work in work {
            let id = ItemId(self.fresh_id());
            let (Work::Row { image, .. } | Work::Group { image, .. }) = &work;
            if let Some(key) = image {
                *self.task(task).pinned.entry(*key).or_default() += 1;
            }
            match work {
                Work::Row { slot, row, image } => {
                    let entry = RowEntry { id, model, tokens: row.tokens(), image };
                    self.scheduler.push_row(task, entry, now);
                    let owner = ItemOwner { task, slot, image };
                    self.items.add_row(id, WaitingRow { owner, input: row });
                }
                Work::Group { slot, spec, image, question_tokens } => {
                    let rows = spec.params.rows_per_group();
                    let tokens = spec.first_step_tokens();
                    let image_kv = image.map(|key| (key, self.backend.cross_kv_bytes(model)));
                    // A step holds both the old and the new keys and values until it has succeeded, hence the factor 2.
                    let most_tokens = 2 * rows * (tokens + spec.params.max_new_tokens);
                    let own_kv = self.backend.row_kv_bytes_per_token(model)
                        * (most_tokens + question_tokens) as u64;
                    let entry = GroupEntry { id, model, rows, tokens, image_kv, own_kv };
                    self.scheduler.push_group(task, entry, now);
                    let owner = ItemOwner { task, slot, image };
                    let admitted = self.task(task).admitted;
                    self.items.add_group(id, WaitingGroup { owner, rows, spec, admitted });
                }
            }
        }
    }

    /// Records that a row or group of `task` that attended to `image` has ended. After the last one, unpins the image.
    pub(super) fn release(&mut self, task: TaskId, image: Option<FeatureKey>) {
        if let (Some(key), Some(active)) = (image, self.tasks.get_mut(&task))
            && active.release(key)
        {
            self.features.unpin(key);
        }
    }

    /// Answers the task if its plan is complete.
    pub(super) fn complete_task(&mut self, task: TaskId) {
        if self.tasks.get(&task).is_some_and(|active| active.plan.is_complete())
            && let Some(active) = self.remove(task)
        {
            let now = self.now();
            let ActiveTask { plan, run, reservation, reply, .. } = active;
            reservation.record_answered(now.saturating_duration_since(run.submitted));
            drop(reservation);
            let outcome = match plan.into_output() {
                Ok(output) => Ok(Answered { output, run }),
                Err(error) => Err(error.into()),
            };
            self.meter.record_outcome(outcome.as_ref().err());
            self.outbox.push((reply, outcome));
        }
    }

    /// Ends a task without an output.
    pub(super) fn end_with_error(&mut self, task: TaskId, error: EngineError) {
        if let Some(ActiveTask { reservation, reply, .. }) = self.remove(task) {
            drop(reservation);
            self.meter.record_outcome(Some(&error));
            self.outbox.push((reply, Err(error)));
        }
    }

    /// Removes a task, with everything that waits, runs or is pinned for it.
    fn remove(&mut self, task: TaskId) -> Option<ActiveTask> {
        let active = self.tasks.remove(&task)?;
        for item in self.scheduler.remove_task(task).items {
            self.items.drop_item(item);
        }
        for &(key, _) in &active.awaited {
            self.features.withdraw(key, task);
        }
        for &key in active.pinned.keys() {
            self.features.unpin(key);
        }
        Some(active)
    }

    /// Runs small units of each kind, publishes their costs, and reports whether every unit succeeded.
    ///
    /// # Errors
    /// `ModelFailed` for the first unit that failed.
    pub(super) fn warm_up(&mut self) -> Result<(), WarmUpError> {
        let outcome = self.trial_run().warm_up();
        self.publish();
        outcome
    }

    fn trial_run(&mut self) -> TrialRun<'_, B> {
        let Self { backend, scheduler, meter, shared, .. } = self;
        TrialRun { backend, scheduler, meter, shared }
    }

    fn publish(&mut self) {
        let now = self.shared.clock.now();
        let waiting = self.tasks.values().filter(|active| active.run.started.is_none());
        let oldest = waiting.map(|active| active.run.submitted).min();
        let age = oldest.map(|submitted| now.saturating_duration_since(submitted));
        self.meter.set_queue_gauges(self.scheduler.depth(), age);
        self.meter.update_feature_metrics(self.features.bytes(), self.features.evictions());
        self.meter.update_device_metrics(self.backend.device_usage());
        let measured = self.scheduler.measured();
        self.shared.admission.publish(self.meter.estimates(measured, now));
    }

    fn send(&mut self) {
        for (reply, outcome) in self.outbox.drain(..) {
            faults::at("engine::send");
            // An error means that the client has disconnected in the meantime, so nobody needs the outcome.
            let _ = reply.send(outcome);
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn task(&mut self, task: TaskId) -> &mut ActiveTask {
        self.tasks.get_mut(&task).expect("the caller has just seen the task")
    }

    pub(super) fn now(&self) -> Instant {
        self.shared.clock.now()
    }
}

impl From<PlanError> for EngineError {
    fn from(error: PlanError) -> Self {
        Self::InferenceFailed(error.to_string())
    }
}
