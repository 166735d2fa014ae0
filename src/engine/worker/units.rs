//! Runs work units: vision batches, batches of single-pass rows, and decode steps.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::fault::{Fault, attempt, injected, run_or_split};
use super::items::{FinishedGroup, ItemOwner, RunningGroup};
use super::meter::StepMix;
use super::turn::Worker;
use crate::engine::EngineError;
use crate::engine::backend::{Backend, SinglePassRow, StepEvent};
use crate::engine::ids::{FeatureKey, ItemId, TaskId};
use crate::engine::plan::PlanError;
use crate::engine::scheduler::{Unit, UnitWork};
use crate::task::{ModelId, Pixels, StageRun, TowerId, VisionOutput};

/// When a unit ran, and the number of its images or rows.
#[derive(Debug, Clone, Copy)]
struct Batch {
    began: Instant,
    ended: Instant,
    size: usize,
}

impl<B: Backend> Worker<B> {
    /// Runs a unit and distributes its results to the tasks.
    pub(super) fn run(&mut self, unit: Unit) {
        let Unit { work, trigger, waited } = unit;
        self.meter.record_unit_start(work.stage(), trigger, &waited);
        match &work {
            UnitWork::Encode { output, images } => self.encode(&work, *output, images),
            UnitWork::SinglePass { model, rows, work: tokens } => {
                self.run_single_pass(&work, *model, rows, *tokens);
            }
            UnitWork::Step { model, groups, joining, work: tokens } => {
                self.step(&work, *model, groups, *joining, *tokens);
            }
        }
    }

    fn encode(&mut self, work: &UnitWork, output: VisionOutput, images: &[FeatureKey]) {
        let mut encoding: Vec<(FeatureKey, Arc<Pixels>)> = images
            .iter()
            .filter_map(|&key| self.features.pixels(key).map(|pixels| (key, pixels)))
            .collect();
        let start = self.now();
        let (backend, meter) = (&mut self.backend, &self.meter);
        let mut faults = 0;
        let results =
            run_or_split(&mut encoding, &mut |part: &mut [(FeatureKey, Arc<Pixels>)]| {
                let pixels: Vec<&Pixels> = part.iter().map(|(_, pixels)| &**pixels).collect();
                let result = attempt(|| {
                    injected("engine::encode")?;
                    backend.encode(output, &pixels)
                });
                faults += meter.record_call("encode", part.len(), &result);
                result
            });
        let elapsed = self.record(work, start, faults == 0);
        let now = self.now();
        let batch = Batch { began: start, ended: start + elapsed, size: encoding.len() };
        let tower = output.tower;
        let bytes = self.backend.feature_bytes(tower);
        let encoded = results.iter().filter(|result| result.is_ok()).count();
        self.meter.record_vision_batch(self.model_of(tower), encoding.len(), encoded, elapsed);
        self.suspect_backend(self.model_of(tower), &results);
        self.update_backoff(&results);
        let mut participated = BTreeSet::new();
        for ((key, _), result) in encoding.into_iter().zip(results) {
            match result {
                Ok(states) => {
                    let waiters = self.features.complete(key, states.clone(), bytes, now);
                    self.participated(&waiters, &mut participated, batch);
                    for task in waiters {
                        self.image_ready(task, key, &states, now);
                        self.complete_task(task);
                    }
                }
                Err(fault) => {
                    for task in self.features.fail(key) {
                        self.fail(task, &fault);
                    }
                }
            }
        }
    }

    /// Adds the time of a vision batch to each task that waited for one of its images. `known` holds the tasks to which
    /// the time has already been added, so that the time counts only once for a task with several images.
    fn participated(&mut self, waiters: &[TaskId], known: &mut BTreeSet<TaskId>, batch: Batch) {
        for &task in waiters {
            if known.insert(task)
                && let Some(active) = self.tasks.get_mut(&task)
            {
                active.run.start(batch.began);
                StageRun::add(&mut active.run.vision, (batch.began, batch.ended), batch.size);
            }
        }
    }

    fn run_single_pass(&mut self, work: &UnitWork, model: ModelId, ids: &[ItemId], tokens: f64) {
        let mut owners: Vec<ItemOwner> = Vec::with_capacity(ids.len());
        let mut rows: Vec<SinglePassRow<B::EncoderStates>> = Vec::with_capacity(ids.len());
        for row in ids.iter().filter_map(|&id| self.items.take_row(id)) {
            owners.push(row.owner);
            rows.push(row.input);
        }
        let start = self.now();
        let tasks: BTreeSet<TaskId> = owners.iter().map(|owner| owner.task).collect();
        self.start_tasks(&tasks, start);
        let (backend, meter) = (&mut self.backend, &self.meter);
        let mut faults = 0;
        let results =
            run_or_split(&mut rows, &mut |part: &mut [SinglePassRow<B::EncoderStates>]| {
                let result = attempt(|| {
                    injected("engine::single_pass")?;
                    backend.run_single_pass(model, part)
                });
                faults += meter.record_call("single_pass", part.len(), &result);
                result
            });
        let elapsed = self.record(work, start, faults == 0);
        let now = self.now();
        self.add_text_time(
            &tasks,
            Batch { began: start, ended: start + elapsed, size: rows.len() },
        );
        self.meter.record_single_pass_batch(model, rows.len(), tokens, elapsed);
        let tokens_per_row = tokens / rows.len().max(1) as f64;
        self.suspect_backend(model, &results);
        self.update_backoff(&results);
        drop(rows);
        for (ItemOwner { task, slot, image }, result) in owners.into_iter().zip(results) {
            let Some(active) = self.tasks.get_mut(&task) else { continue };
            match result.map(|output| active.plan.row_done(slot, output)) {
                Ok(Ok(more)) => {
                    active.reservation.record_row(tokens_per_row);
                    self.enqueue(task, more, now);
                    self.release(task, image);
                    self.complete_task(task);
                }
                Ok(Err(error)) => self.fail_plan(task, error),
                Err(fault) => self.fail(task, &fault),
            }
        }
    }

    fn step(
        &mut self,
        work: &UnitWork,
        model: ModelId,
        ids: &[ItemId],
        joining: usize,
        tokens: f64,
    ) {
        let (running, joining) = ids.split_at(ids.len() - joining);
        let mix = self.mix(running, joining);
        for &id in joining {
            self.join(id);
        }
        // If a group cannot be opened, its whole task fails, and the task's other groups are dropped as well.
        let mut groups = self.items.begin_step(ids);
        if groups.is_empty() {
            return;
        }
        let start = self.now();
        let tasks: BTreeSet<TaskId> = groups.iter().map(|(_, group)| group.owner.task).collect();
        self.start_tasks(&tasks, start);
        let (backend, meter) = (&mut self.backend, &self.meter);
        let mut faults = 0;
        let results =
            run_or_split(&mut groups, &mut |part: &mut [(_, RunningGroup<B::Group>)]| {
                let mut part: Vec<&mut B::Group> =
                    part.iter_mut().map(|(_, group)| &mut group.state).collect();
                let result = attempt(|| {
                    injected("engine::step")?;
                    backend.step(model, &mut part)
                });
                faults += meter.record_call("step", part.len(), &result);
                result
            });
        let elapsed = self.record(work, start, faults == 0);
        let now = self.now();
        self.add_text_time(&tasks, Batch { began: start, ended: start + elapsed, size: mix.rows });
        self.meter.record_step(model, &mix, elapsed);
        self.suspect_backend(model, &results);
        self.update_backoff(&results);
        let per_row = tokens / mix.rows.max(1) as f64;
        for ((id, mut group), result) in groups.into_iter().zip(results) {
            let task = group.owner.task;
            // The result of another group may have ended the task.
            if !self.tasks.contains_key(&task) {
                continue;
            }
            match result {
                Ok(event) => {
                    let (gap, is_first) = group.took_step(per_row, now);
                    self.meter.record_token(is_first, gap);
                    self.stepped(id, group, event);
                }
                Err(fault) => self.fail(task, &fault),
            }
        }
    }

    /// Handles the result of one step for one group: streams the token, and completes the group if it has finished.
    fn stepped(&mut self, id: ItemId, group: RunningGroup<B::Group>, event: StepEvent) {
        let task = group.owner.task;
        self.meter.record_generated_tokens(event.generated);
        if let Some(token) = event.token
            && let Some(active) = self.tasks.get_mut(&task)
            && let Some(stream) = &active.stream
        {
            match stream.try_send(token) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    self.end_with_error(task, EngineError::SlowReader);
                    return;
                }
                // Nobody reads the stream any more; the reply may still be wanted.
                Err(TrySendError::Closed(_)) => active.stream = None,
            }
        }
        let Some(sequences) = event.finished else {
            match attempt(|| Ok(self.backend.pending_tokens(&group.state))) {
                Ok(tokens) => {
                    self.scheduler.set_tokens(id, tokens);
                    self.items.advance(id, group);
                }
                Err(fault) => self.fail(task, &fault),
            }
            return;
        };
        let FinishedGroup { owner, steps, tokens } = group.finish();
        self.scheduler.finish(id);
        self.meter.record_finished_row(steps, tokens);
        let Some(active) = self.tasks.get_mut(&task) else { return };
        active.reservation.record_row(tokens);
        match active.plan.group_done(owner.slot, sequences) {
            Ok(()) => {
                self.release(task, owner.image);
                self.complete_task(task);
            }
            Err(error) => self.fail_plan(task, error),
        }
    }

    /// Opens a group that joins the step. If the group cannot be opened, its task fails.
    fn join(&mut self, id: ItemId) {
        let backend = &mut self.backend;
        let joined = self.items.join(id, |spec| {
            attempt(|| {
                injected("engine::open")?;
                Ok(backend.open(spec))
            })
        });
        if let Err((task, fault)) = joined {
            self.meter.record_call("open", 1, &Err::<(), _>(fault.clone()));
            self.suspect = self.tasks.get(&task).map(|active| active.model);
            self.fail(task, &fault);
        }
    }

    /// Counts the groups of a step by kind, and the step's rows.
    fn mix(&self, running: &[ItemId], joining: &[ItemId]) -> StepMix {
        let mut mix = StepMix { prompts: joining.len(), rows: joining.len(), ..StepMix::default() };
        for &id in running {
            let Some((rows, state)) = self.items.group(id) else { continue };
            mix.decoding += usize::from(rows == 1);
            mix.beams += usize::from(rows > 1);
            mix.rows += state.map_or(rows, |state| {
                attempt(|| Ok(self.backend.pending_tokens(state))).unwrap_or_default()
            });
        }
        let has_beams = |&&id: &&ItemId| self.items.group(id).is_some_and(|(rows, _)| rows > 1);
        mix.beams += joining.iter().filter(has_beams).count();
        mix
    }

    /// Charges a unit's time to its stage, and learns its cost if the unit succeeded. Returns that time.
    fn record(&mut self, work: &UnitWork, start: Instant, went_well: bool) -> Duration {
        let now = self.now();
        let elapsed = now.saturating_duration_since(start);
        self.scheduler.record(work, elapsed, went_well);
        if went_well {
            self.meter.record_measurement(work.stage(), now);
        }
        elapsed
    }

    fn start_tasks(&mut self, tasks: &BTreeSet<TaskId>, now: Instant) {
        for task in tasks {
            if let Some(active) = self.tasks.get_mut(task) {
                active.run.start(now);
            }
        }
    }

    fn add_text_time(&mut self, tasks: &BTreeSet<TaskId>, batch: Batch) {
        for task in tasks {
            if let Some(active) = self.tasks.get_mut(task) {
                StageRun::add(&mut active.run.text, (batch.began, batch.ended), batch.size);
            }
        }
    }

    /// Marks the backend as suspect if every item of a unit failed, because the cause may then be the backend as well
    /// as the items. The next turn probes the backend. Running out of memory proves nothing, so it does not count.
    fn suspect_backend<T>(&mut self, model: ModelId, results: &[Result<T, Fault>]) {
        let failed =
            |result: &Result<T, Fault>| matches!(result, Err(fault) if !fault.is_out_of_memory());
        if !results.is_empty() && results.iter().all(failed) {
            self.suspect = Some(model);
        }
    }

    /// Begins or prolongs this worker's failure backoff if every item of a unit failed, for whatever reason; ends it if one
    /// succeeded.
    fn update_backoff<T>(&self, results: &[Result<T, Fault>]) {
        if results.iter().any(Result::is_ok) {
            self.shared.failure_backoff.record_success();
        } else if !results.is_empty() {
            self.shared.failure_backoff.record_failure(self.now());
        }
    }

    /// Ends a task with an error if its plan cannot accept an output. Non-finite numbers make the backend suspect.
    fn fail_plan(&mut self, task: TaskId, error: PlanError) {
        if matches!(error, PlanError::NonFinite(_)) {
            self.meter.record_non_finite();
            self.suspect = self.tasks.get(&task).map(|active| active.model);
        }
        self.end_with_error(task, error.into());
    }

    fn fail(&mut self, task: TaskId, fault: &Fault) {
        let error = fault.to_error(self.shared.admission.retry_after());
        self.end_with_error(task, error);
    }

    /// Returns a model that uses this tower, for the metric label.
    fn model_of(&self, tower: TowerId) -> ModelId {
        let model = self.shared.models.iter().find(|model| model.tower() == Some(tower));
        model.map_or(ModelId(0), |model| model.id)
    }
}
