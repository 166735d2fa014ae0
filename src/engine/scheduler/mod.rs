//! The scheduling policy, which picks the work unit that the worker runs next. It is pure: it uses no clock, channel or
//! tensor. Its items are ids with costs. Within a stage, queueing is fair (`fairness`): clients take turns, and so do
//! the calls of a client.
//!
//! Bulk work has units of its own while other work is ready, a twentieth of the time. It fills up the text units of other
//! work where that costs them little.
//!
//! - [`share`]: divides the worker's time between vision and text.
//! - [`costs`]: costs of work, learnt from measured times.
//! - [`vision`]: images that wait for a vision tower, and the next vision batch.
//! - [`text`]: rows and groups, and the next decode step or batch of single-pass rows.
//!
//! In each turn, `worker` removes the tasks whose deadline has passed, calls [`Scheduler::decide`], runs the unit, and
//! reports its time with [`Scheduler::record`]. Only the worker knows what an id refers to.

mod costs;
#[cfg(test)]
mod properties;
mod share;
mod text;
mod vision;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub(crate) use costs::UnitCost;
pub(crate) use text::{GroupEntry, RowEntry};

use self::costs::Costs;
use self::share::Share;
use self::text::TextStage;
use self::vision::VisionStage;
use super::EngineSettings;
use super::ids::{CallId, FeatureKey, ItemId, TaskId};
use crate::fairness::{ClientId, Deficit};
use crate::mutations::{self, Mutation};
use crate::task::{ModelId, VisionOutput};

/// Number of rows of bulk work that gather before text units run, while images of bulk work wait. A decode step takes
/// almost as long for one row as for many, because it reads all weights: with a base model in bf16 on two cores of a Xeon,
/// a caption takes 277 ms of decoding alone and 105 ms beside seven others, after 690 ms in the vision tower (2026-11-30).
const BULK_ROWS: usize = 16;

/// Number of vision batches in a row for which rows may be held back to gather; 1 if any of their tasks is streamed. A vision
/// batch takes about `unit_time`, or as long as one image if that is longer (0.3 s for a base model on two cores), so the
/// tokens of a stream come at least that often.
const MAX_PAUSES: u32 = 2;

/// The two kinds of work that share the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Vision = 0,
    Text = 1,
}

/// One kind of text unit of one model. Costs are learnt separately for each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Single-pass rows of this model.
    SinglePass(ModelId),
    /// Groups that decode with this model.
    Step(ModelId),
}

/// Why a unit runs now; a label value of `batches_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Trigger {
    /// The unit is as large as the limits allow.
    Full,
    /// The unit's oldest item has waited for the linger time.
    Linger,
    /// There is nothing to wait for, so the unit runs at once.
    Idle,
    /// The engine is draining, so nothing is held back.
    Drain,
}

/// A work unit, which the worker runs without interruption: one vision batch or one text unit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    pub(crate) work: UnitWork,
    pub(crate) trigger: Trigger,
    /// For each item that starts with this unit, the time that it has waited in its stage.
    pub(crate) waited: Vec<Duration>,
}

/// The items of a unit, by kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum UnitWork {
    /// Images for one output of a tower. They have been removed from the scheduler.
    Encode { output: VisionOutput, images: Vec<FeatureKey> },
    /// Single-pass rows of one model. They have been removed from the scheduler. `work` is their cost in tokens.
    SinglePass { model: ModelId, rows: Vec<ItemId>, work: f64 },
    /// Groups of one model. The last `joining` of them are new and run their first step. All of them stay in the
    /// scheduler until [`Scheduler::finish`].
    Step { model: ModelId, groups: Vec<ItemId>, joining: usize, work: f64 },
}

impl UnitWork {
    /// Returns the stage to which the unit's time is charged.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Encode { .. } => Stage::Vision,
            Self::SinglePass { .. } | Self::Step { .. } => Stage::Text,
        }
    }
}

/// What the worker does now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Run this unit, then report it to [`Scheduler::record`].
    Run(Unit),
    /// Nothing can run before this time, unless something arrives.
    WaitUntil(Instant),
    /// Nothing can run until something arrives.
    Idle,
}

/// What was removed from the scheduler together with a task.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Withdrawn {
    /// Images that no task waits for any more.
    pub(crate) images: Vec<FeatureKey>,
    /// The task's rows and groups, running ones included.
    pub(crate) items: Vec<ItemId>,
}

/// What the policy needs to know of a task besides its items.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TaskTraits {
    /// The model that decodes a caption once the image is encoded.
    pub(crate) decodes: Option<ModelId>,
    /// Whether a client reads the tokens as they are generated.
    pub(crate) is_streamed: bool,
}

#[derive(Debug)]
struct TaskEntry {
    call: CallId,
    traits: TaskTraits,
    deadline: Instant,
    images: Vec<FeatureKey>,
    items: BTreeSet<ItemId>,
}

/// When a stage or a lane can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Now(Trigger),
    At(Instant),
    No,
}

/// The scheduling policy, with all items that wait or run.
#[derive(Debug)]
pub(crate) struct Scheduler {
    settings: EngineSettings,
    tasks: BTreeMap<TaskId, TaskEntry>,
    vision: VisionStage,
    text: TextStage,
    costs: Costs,
    share: Share,
    /// The time that units of interactive work and units of bulk work have had.
    classes: Deficit,
    /// True if the unit that was decided last is one of bulk work.
    runs_bulk: bool,
    /// Number of vision batches of interactive work since its last text unit.
    pauses: u32,
    draining: bool,
}

impl Scheduler {
    /// Creates a scheduler without items. `image_tokens[model]` is the number of image tokens that the model's text
    /// tower attends to.
    pub(crate) fn new(settings: EngineSettings, image_tokens: &[usize]) -> Self {
        Self {
            tasks: BTreeMap::new(),
            vision: VisionStage::new(),
            text: TextStage::new(image_tokens, settings.max_kv_bytes),
            costs: Costs::default(),
            share: Share::new(settings.vision_share_percent),
            classes: Deficit::for_bulk_work(settings.unit_time().as_secs_f64()),
            runs_bulk: false,
            pauses: 0,
            draining: false,
            settings,
        }
    }

    /// Registers a task. Call it before its items are pushed.
    pub(crate) fn add_task(
        &mut self,
        task: TaskId,
        call: CallId,
        deadline: Instant,
        traits: TaskTraits,
    ) {
        let mutated = mutations::is_active(Mutation::TurnsByCallOnly);
        let call = if mutated { CallId { client: ClientId::default(), ..call } } else { call };
        let (images, items) = (Vec::new(), BTreeSet::new());
        let entry = TaskEntry { call, traits, deadline, images, items };
        self.tasks.insert(task, entry);
    }

    /// Adds an image that `task` waits for; its features will need `bytes` bytes. If another task already waits for the
    /// same image, both share one encoding.
    pub(crate) fn push_image(&mut self, task: TaskId, key: FeatureKey, bytes: u64, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.images.push(key);
        self.vision.push(key, bytes, task, entry.call, now);
    }

    /// Adds a single-pass row of `task` that is ready to run.
    pub(crate) fn push_row(&mut self, task: TaskId, row: RowEntry, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.items.insert(row.id);
        self.text.push_row(task, entry.call, row, now);
    }

    /// Adds a group of `task` that is ready to join a step.
    pub(crate) fn push_group(&mut self, task: TaskId, group: GroupEntry, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        entry.items.insert(group.id);
        self.text.push_group(task, entry.call, group, now);
    }

    /// Returns the tasks whose deadline has passed. The caller removes them before it calls [`decide`](Self::decide).
    pub(crate) fn due(&self, now: Instant) -> Vec<TaskId> {
        let due = self.tasks.iter().filter(|(_, entry)| entry.deadline <= now);
        due.map(|(&task, _)| task).collect()
    }

    /// Returns the earliest deadline of all tasks.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.tasks.values().map(|entry| entry.deadline).min()
    }

    /// Removes a task that has ended for any reason, with everything that waits or runs for it.
    pub(crate) fn remove_task(&mut self, task: TaskId) -> Withdrawn {
        let Some(entry) = self.tasks.remove(&task) else { return Withdrawn::default() };
        let images = entry.images.into_iter().filter(|&key| self.vision.leave(key, task)).collect();
        let items: Vec<ItemId> = entry.items.into_iter().collect();
        for &item in &items {
            self.text.remove(item);
        }
        Withdrawn { images, items }
    }

    /// Removes a running group that has finished or failed.
    pub(crate) fn finish(&mut self, group: ItemId) {
        if let Some(task) = self.text.task_of(group) {
            self.forget(task, group);
        }
        self.text.remove(group);
    }

    /// Sets the number of tokens that a running group's next step processes.
    pub(crate) fn set_tokens(&mut self, group: ItemId, tokens: usize) {
        self.text.set_tokens(group, tokens);
    }

    /// Starts draining: from now on no item is held back for the linger time.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns the number of waiting images and of waiting rows (the queue depth). Rows of running groups do not count.
    pub(crate) fn depth(&self) -> (usize, usize) {
        (self.vision.len(), self.text.waiting_rows())
    }

    /// Returns all rows and groups. The flag of each is true if it is a running group.
    #[cfg(test)]
    pub(crate) fn running(&self) -> BTreeMap<ItemId, bool> {
        self.text.running()
    }

    /// Returns the measured seconds per image and the measured cost of text units, over all towers and models.
    pub(crate) fn measured(&self) -> (Option<f64>, Option<UnitCost>) {
        (self.costs.any_image(), self.costs.any_text())
    }

    /// Returns the cost of projecting one image to the keys and values of this model's text tower, in tokens.
    pub(crate) fn image_work(&self, model: ModelId) -> f64 {
        self.text.image_work(model)
    }

    /// Picks the next unit. `pinned` is the size in bytes of the features that rows pin.
    pub(crate) fn decide(&mut self, now: Instant, pinned: u64) -> Decision {
        debug_assert!(self.due(now).is_empty(), "the caller removes due tasks first");
        // What can run for interactive work and for bulk work: a vision batch, and a unit of this lane.
        let ready = [false, true].map(|bulk| self.ready(bulk, now, pinned));
        let can_run = |ready| matches!(ready, Ready::Now(_));
        let class =
            self.classes.choose(ready.map(|(vision, text)| can_run(vision) || can_run(text.1)));
        let Some(class) = class else {
            let at = |ready| if let Ready::At(at) = ready { Some(at) } else { None };
            let all = ready.into_iter().flat_map(|(vision, text)| [at(vision), at(text.1)]);
            return all.flatten().min().map_or(Decision::Idle, Decision::WaitUntil);
        };
        self.runs_bulk = class == 1;
        let (vision, text) = ready[class];
        let mut stages = [can_run(vision), can_run(text.1)];
        if stages == [true, true] && self.runs_bulk {
            stages[1] = self.text.bulk_rows() >= BULK_ROWS;
        } else if stages == [true, true]
            && let Some(most) = text.0.and_then(|lane| self.most_pauses(lane))
        {
            stages = if self.pauses < most { [true, false] } else { [false, true] };
        }
        let stage = self.share.choose(stages);
        if !self.runs_bulk {
            self.pauses = if stage == Some(Stage::Vision) { self.pauses + 1 } else { 0 };
        }
        match (stage, vision, text) {
            (Some(Stage::Vision), Ready::Now(trigger), _) => self.encode(now, pinned, trigger),
            (Some(Stage::Text), _, (Some(lane), Ready::Now(trigger))) => {
                self.text_unit(lane, now, trigger)
            }
            _ => Decision::Idle,
        }
    }

    /// Returns the number of vision batches for which the rows of a lane wait, so that more rows share their steps; `None` if
    /// there are enough rows, or none to gain. A decode step takes almost as long for one row as for eight, because it reads
    /// all weights. The rows to gain are those of captions whose images wait for the same model. With few of them the server
    /// answers as soon as it can.
    fn most_pauses(&self, lane: Lane) -> Option<u32> {
        let Lane::Step(model) = lane else { return None };
        let most = self.settings.gather_rows;
        if most <= 1 || self.draining {
            return None;
        }
        let rows = self.text.interactive_rows(lane);
        if rows >= most {
            return None;
        }
        let interactive = || self.tasks.values().filter(|task| !task.call.client.is_bulk());
        let waiting = || interactive().filter(|task| !task.images.is_empty());
        let images = waiting().filter(|task| task.traits.decodes == Some(model)).count();
        // Among many images of other tasks, those of captions come too slowly to wait for.
        let come_soon = 2 * images >= waiting().count();
        if images == 0 || !come_soon || rows + images < most.div_ceil(2) {
            return None;
        }
        let is_streamed =
            interactive().any(|task| task.traits.is_streamed && !task.items.is_empty());
        Some(if is_streamed { 1 } else { MAX_PAUSES })
    }

    /// Returns when the vision stage and the text stage can run for bulk work, or for other work, and the lane of the
    /// latter.
    fn ready(&self, bulk: bool, now: Instant, pinned: u64) -> (Ready, (Option<Lane>, Ready)) {
        let linger = if self.draining { Duration::ZERO } else { self.settings.linger };
        let (settings, costs) = (&self.settings, &self.costs);
        let vision = self.vision.ready(bulk, now, linger, pinned, settings, costs);
        (vision, self.text.ready(bulk, now, linger, settings, costs))
    }

    /// Records the time that a unit took. Costs are learnt only from units that succeeded.
    pub(crate) fn record(&mut self, work: &UnitWork, elapsed: Duration, went_well: bool) {
        self.share.charge(work.stage(), elapsed);
        self.classes.charge(usize::from(self.runs_bulk), elapsed.as_secs_f64());
        if !went_well {
            return;
        }
        match work {
            UnitWork::Encode { output, images } => {
                self.costs.record_images(*output, images.len(), elapsed);
            }
            UnitWork::SinglePass { model, work, .. } => {
                self.costs.record_text(Lane::SinglePass(*model), *work, elapsed);
            }
            UnitWork::Step { model, work, .. } => {
                self.costs.record_text(Lane::Step(*model), *work, elapsed);
            }
        }
    }

    fn encode(&mut self, now: Instant, pinned: u64, trigger: Trigger) -> Decision {
        let batch = self.vision.take(self.runs_bulk, now, pinned, &self.settings, &self.costs);
        for (task, key) in &batch.left {
            if let Some(entry) = self.tasks.get_mut(task) {
                entry.images.retain(|waiting| waiting != key);
            }
        }
        let work = UnitWork::Encode { output: batch.output, images: batch.images };
        Decision::Run(Unit {
            work,
            trigger: self.trigger(trigger, batch.full),
            waited: batch.waited,
        })
    }

    fn text_unit(&mut self, lane: Lane, now: Instant, trigger: Trigger) -> Decision {
        let taken = self.text.take((lane, self.runs_bulk), now, &self.settings, &self.costs);
        let work = match lane {
            Lane::SinglePass(model) => {
                for &(task, row) in &taken.left {
                    self.forget(task, row);
                }
                UnitWork::SinglePass { model, rows: taken.items, work: taken.work }
            }
            Lane::Step(model) => UnitWork::Step {
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

/// Returns when a stage or lane can run if its oldest waiting item arrived at `oldest`: at once if its items fill a
/// unit, otherwise after the linger time.
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
