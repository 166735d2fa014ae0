//! The policy: which unit the worker runs next. Pure: no clock, no channel, no tensor; items are ids with costs.
//! Inside a stage clients take turns, and so do the calls of a client (`fairness`).
//!
//! - [`share`]: vision and text share time.
//! - [`costs`]: what work costs, learnt from what it took.
//! - [`vision`]: images that wait for a tower, and the next vision batch.
//! - [`text`]: rows and groups, and the next text step or pass.
//!
//! `worker` calls it: it drops tasks that are due, asks [`Scheduler::decide`], runs the unit, and reports with
//! [`Scheduler::record`]. What an id stands for is the worker's business.

mod costs;
#[cfg(test)]
mod properties;
mod share;
mod text;
mod vision;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(crate) use costs::TextCost;
pub(crate) use text::{GroupEntry, RowEntry};

use self::costs::Costs;
use self::share::Share;
use self::text::Text;
use self::vision::Vision;
use super::EngineSettings;
use super::ids::{CallId, FeatureKey, ItemId, TaskId};
use crate::task::{ModelId, TowerId};

/// The two kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Vision = 0,
    Text = 1,
}

/// A kind of text unit of one model; each learns its own costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LaneId {
    /// One-pass rows.
    Score(ModelId),
    /// Groups that generate.
    Step(ModelId),
}

/// Why a unit runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    /// It holds as much as it may.
    Full,
    /// It has been held back for company long enough.
    Linger,
    /// Nothing else waits.
    Idle,
    /// Draining: nothing is held back.
    Drain,
}

/// What the worker runs without looking up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    pub(crate) work: UnitWork,
    pub(crate) trigger: Trigger,
    /// For each item that starts with this unit: how long it waited in its stage.
    pub(crate) waited: Vec<Duration>,
}

/// A vision batch, or a text pass or step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum UnitWork {
    /// Images of one tower. They have left the scheduler.
    Encode { tower: TowerId, images: Vec<FeatureKey> },
    /// One-pass rows of one model. They have left the scheduler. `work` is their size in tokens.
    Score { model: ModelId, rows: Vec<ItemId>, work: f64 },
    /// Groups of one model, those that join now last; they stay until [`Scheduler::finish`].
    Step { model: ModelId, groups: Vec<ItemId>, joining: usize, work: f64 },
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Run this, then [`Scheduler::record`] it.
    Run(Unit),
    /// Nothing runs before this time, unless something arrives.
    WaitUntil(Instant),
    /// Nothing waits that could run.
    Idle,
}

/// What a task that left had waiting.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Left {
    /// Images that nobody waits for any more.
    pub(crate) images: Vec<FeatureKey>,
    /// Its rows and groups, running ones included.
    pub(crate) items: Vec<ItemId>,
}

#[derive(Debug)]
struct TaskEntry {
    call: CallId,
    deadline: Instant,
    images: Vec<FeatureKey>,
    items: BTreeSet<ItemId>,
}

/// When a stage or lane could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Now(Trigger),
    At(Instant),
    No,
}

/// The policy and everything that waits.
#[derive(Debug)]
pub(crate) struct Scheduler {
    settings: EngineSettings,
    tasks: BTreeMap<TaskId, TaskEntry>,
    vision: Vision,
    text: Text,
    costs: Costs,
    share: Share,
    draining: bool,
}

impl Scheduler {
    /// `image_tokens[model]`: tokens that a text tower attends to in one image of each model.
    pub(crate) fn new(settings: EngineSettings, image_tokens: &[usize]) -> Self {
        Self {
            tasks: BTreeMap::new(),
            vision: Vision::new(),
            text: Text::new(image_tokens, settings.max_kv_bytes),
            costs: Costs::default(),
            share: Share::new(settings.vision_share_percent),
            draining: false,
            settings,
        }
    }

    /// Announces a task before its items are pushed.
    pub(crate) fn add_task(&mut self, task: TaskId, call: CallId, deadline: Instant) {
        let entry = TaskEntry { call, deadline, images: Vec::new(), items: BTreeSet::new() };
        self.tasks.insert(task, entry);
    }

    /// `task` waits for this image, of `bytes` once encoded; an image that already waits is joined.
    pub(crate) fn push_image(&mut self, task: TaskId, key: FeatureKey, bytes: u64, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.images.push(key);
        self.vision.push(key, bytes, task, entry.call, now);
    }

    /// `task` has a one-pass row that could run.
    pub(crate) fn push_row(&mut self, task: TaskId, row: RowEntry, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.items.insert(row.id);
        self.text.push_row(task, entry.call, row, now);
    }

    /// `task` has a group that could join.
    pub(crate) fn push_group(&mut self, task: TaskId, group: GroupEntry, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.items.insert(group.id);
        self.text.push_group(task, entry.call, group, now);
    }

    /// Tasks whose deadline has passed. The caller removes them before it asks for a unit.
    pub(crate) fn due(&self, now: Instant) -> Vec<TaskId> {
        let due = self.tasks.iter().filter(|(_, entry)| entry.deadline <= now);
        due.map(|(&task, _)| task).collect()
    }

    /// The earliest deadline of all tasks.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tasks.values().map(|entry| entry.deadline).min()
    }

    /// The task is over, whatever the reason: nothing of it runs any more.
    pub(crate) fn remove_task(&mut self, task: TaskId) -> Left {
        let Some(entry) = self.tasks.remove(&task) else { return Left::default() };
        let images = entry.images.into_iter().filter(|&key| self.vision.leave(key, task)).collect();
        let items: Vec<ItemId> = entry.items.into_iter().collect();
        for &item in &items {
            self.text.remove(item);
        }
        Left { images, items }
    }

    /// A running group has ended (or failed).
    pub(crate) fn finish(&mut self, group: ItemId) {
        if let Some(task) = self.text.task_of(group) {
            self.forget(task, group);
        }
        self.text.remove(group);
    }

    /// Tokens that a running group's next step runs.
    pub(crate) fn set_tokens(&mut self, group: ItemId, tokens: usize) {
        self.text.set_tokens(group, tokens);
    }

    /// From now on nothing is held back for company.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Images and rows that wait (running groups do not).
    pub(crate) fn depth(&self) -> (usize, usize) {
        (self.vision.len(), self.text.waiting_rows())
    }

    /// Cost of one image in seconds, and of text units, over all towers and models; once measured.
    pub(crate) fn measured(&self) -> (Option<f64>, Option<TextCost>) {
        (self.costs.any_image(), self.costs.any_text())
    }

    /// Work of projecting one image for this model's texts, in tokens.
    pub(crate) fn image_work(&self, model: ModelId) -> f64 {
        self.text.image_work(model)
    }

    /// The next unit. `pinned` is the size in bytes of the encoded images that rows hold.
    pub(crate) fn decide(&mut self, now: Instant, pinned: u64) -> Decision {
        debug_assert!(self.due(now).is_empty(), "the caller removes due tasks first");
        let linger = if self.draining { Duration::ZERO } else { self.settings.linger };
        let vision = self.vision.ready(now, linger, pinned, &self.settings, &self.costs);
        let text = self.text.ready(now, linger, &self.settings, &self.costs);
        let can_run = |ready| matches!(ready, Ready::Now(_));
        let stage = self.share.choose([can_run(vision), can_run(text.1)]);
        match (stage, vision, text) {
            (Some(Stage::Vision), Ready::Now(trigger), _) => self.encode(now, pinned, trigger),
            (Some(Stage::Text), _, (Some(lane), Ready::Now(trigger))) => {
                self.text_unit(lane, now, trigger)
            }
            _ => {
                let at = |ready| if let Ready::At(at) = ready { Some(at) } else { None };
                let next = [at(vision), at(text.1)].into_iter().flatten().min();
                next.map_or(Decision::Idle, Decision::WaitUntil)
            }
        }
    }

    /// Reports what a unit took; costs are learnt from units that went well.
    pub(crate) fn record(&mut self, work: &UnitWork, elapsed: Duration, went_well: bool) {
        let stage = match work {
            UnitWork::Encode { tower, images } => {
                if went_well {
                    self.costs.record_images(*tower, images.len(), elapsed);
                }
                Stage::Vision
            }
            UnitWork::Score { model, work, .. } => {
                if went_well {
                    self.costs.record_text(LaneId::Score(*model), *work, elapsed);
                }
                Stage::Text
            }
            UnitWork::Step { model, work, .. } => {
                if went_well {
                    self.costs.record_text(LaneId::Step(*model), *work, elapsed);
                }
                Stage::Text
            }
        };
        self.share.charge(stage, elapsed);
    }

    fn encode(&mut self, now: Instant, pinned: u64, trigger: Trigger) -> Decision {
        let batch = self.vision.take(now, pinned, &self.settings, &self.costs);
        for (task, key) in &batch.left {
            if let Some(entry) = self.tasks.get_mut(task) {
                entry.images.retain(|waiting| waiting != key);
            }
        }
        let work = UnitWork::Encode { tower: batch.tower, images: batch.images };
        Decision::Run(Unit {
            work,
            trigger: self.trigger(trigger, batch.full),
            waited: batch.waited,
        })
    }

    fn text_unit(&mut self, lane: LaneId, now: Instant, trigger: Trigger) -> Decision {
        let taken = self.text.take(lane, now, &self.settings, &self.costs);
        let work = match lane {
            LaneId::Score(model) => {
                for &(task, row) in &taken.left {
                    self.forget(task, row);
                }
                UnitWork::Score { model, rows: taken.items, work: taken.work }
            }
            LaneId::Step(model) => UnitWork::Step {
                model,
                groups: taken.items,
                joining: taken.joining,
                work: taken.work,
            },
        };
        let trigger = self.trigger(trigger, taken.full);
        Decision::Run(Unit { work, trigger, waited: taken.waited })
    }

    fn trigger(&self, ready: Trigger, full: bool) -> Trigger {
        match (full, self.draining) {
            (true, _) => Trigger::Full,
            (false, true) => Trigger::Drain,
            (false, false) => ready,
        }
    }

    fn forget(&mut self, task: TaskId, item: ItemId) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.items.remove(&item);
        }
    }
}

/// When work that arrived at `oldest` may run: at once if it fills a unit, else when it has lingered.
fn after_linger(oldest: Instant, linger: Duration, full: bool, now: Instant) -> Ready {
    if full {
        return Ready::Now(Trigger::Full);
    }
    if linger.is_zero() {
        return Ready::Now(Trigger::Idle);
    }
    let until = oldest + linger;
    if until <= now { Ready::Now(Trigger::Linger) } else { Ready::At(until) }
}
