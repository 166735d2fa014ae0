//! Rows and groups that wait or run, and the next text unit. One lane for each model's one-pass rows and one for
//! its groups; lanes take turns.
//!
//! A step takes running groups first, in the order in which they joined, but no call's second group before every
//! call's first: a call with many groups steps aside for one that arrives, and the groups left out keep their state
//! and come back. Nothing overtakes a group that waits for room, so every group is finished in the end.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::costs::{Costs, TextCost};
use super::turns::{Pick, Turns};
use super::{LaneId, Ready, after_linger};
use crate::engine::EngineSettings;
use crate::engine::ids::{CallId, FeatureKey, ItemId, TaskId};
use crate::task::ModelId;

/// Projecting one image's keys and values costs as much as so many of its tokens run through the text tower:
/// 16 GFLOP for 577 image tokens against 0.2 GFLOP for a text token (12 layers x 14 x 768 x 768 x 2), so one in 8.
const IMAGE_TOKENS_PER_TOKEN: f64 = 8.0;

/// A one-pass row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowEntry {
    pub(crate) id: ItemId,
    pub(crate) model: ModelId,
    /// Tokens that it runs; 0 for an image's projection.
    pub(crate) tokens: usize,
    /// The image that it attends to.
    pub(crate) image: Option<FeatureKey>,
}

/// A sequence or a beam set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupEntry {
    pub(crate) id: ItemId,
    pub(crate) model: ModelId,
    /// Rows that it occupies: its beams.
    pub(crate) rows: usize,
    /// Tokens that its first step runs.
    pub(crate) tokens: usize,
    /// The image whose keys and values it holds, and their bytes.
    pub(crate) kv: Option<(FeatureKey, u64)>,
}

#[derive(Debug)]
struct Item {
    task: TaskId,
    call: CallId,
    lane: LaneId,
    arrival: Instant,
    rows: usize,
    tokens: usize,
    image: Option<FeatureKey>,
    kv_bytes: u64,
    running: bool,
}

#[derive(Debug)]
struct Lane {
    waiting: Turns<ItemId>,
    /// Groups that have joined, in that order; empty in a lane of one-pass rows.
    running: Vec<ItemId>,
    /// Work of projecting one image, in tokens.
    image_work: f64,
}

/// Everything that waits or runs on the text side.
#[derive(Debug)]
pub(super) struct Text {
    items: HashMap<ItemId, Item>,
    lanes: HashMap<LaneId, Lane>,
    order: VecDeque<LaneId>,
    /// Images whose keys and values are held, with the running groups that share them.
    kv: HashMap<(ModelId, FeatureKey), (usize, u64)>,
    max_kv_bytes: u64,
}

/// A text unit's items.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) items: Vec<ItemId>,
    /// How many of `items`, at the end, join now.
    pub(super) joining: usize,
    pub(super) work: f64,
    pub(super) waited: Vec<Duration>,
    /// Rows that have left, with their tasks.
    pub(super) left: Vec<(TaskId, ItemId)>,
    pub(super) full: bool,
}

/// A unit being filled, and its limits.
struct Fill<'a> {
    settings: &'a EngineSettings,
    cost: Option<TextCost>,
    image_work: f64,
    items: usize,
    rows: usize,
    tokens: usize,
    work: f64,
    images: Vec<FeatureKey>,
}

impl Fill<'_> {
    /// Adds an item if it fits; the first always does.
    fn add(&mut self, item: &Item) -> bool {
        let new_image = item.image.filter(|image| !self.images.contains(image) && !item.running);
        let image_work = if new_image.is_some() { self.image_work } else { 0.0 };
        let work = self.work + item.tokens as f64 + image_work;
        let in_time = self
            .cost
            .is_some_and(|cost| cost.seconds(work) <= cost.budget(self.settings.unit_time));
        let fits = self.rows + item.rows <= self.settings.max_batch_rows
            && self.tokens + item.tokens <= self.settings.max_batch_tokens
            && in_time;
        if self.items > 0 && !fits {
            return false;
        }
        self.items += 1;
        self.rows += item.rows;
        self.tokens += item.tokens;
        self.work = work;
        self.images.extend(new_image);
        true
    }
}

impl Text {
    pub(super) fn new(image_tokens: &[usize], max_kv_bytes: u64) -> Self {
        let mut text = Self {
            items: HashMap::new(),
            lanes: HashMap::new(),
            order: VecDeque::new(),
            kv: HashMap::new(),
            max_kv_bytes,
        };
        for (model, &tokens) in image_tokens.iter().enumerate() {
            for lane in [LaneId::Step(ModelId(model)), LaneId::Score(ModelId(model))] {
                let image_work = tokens as f64 / IMAGE_TOKENS_PER_TOKEN;
                let empty = Lane { waiting: Turns::new(), running: Vec::new(), image_work };
                text.lanes.insert(lane, empty);
                text.order.push_back(lane);
            }
        }
        text
    }

    pub(super) fn push_row(&mut self, task: TaskId, call: CallId, row: RowEntry, now: Instant) {
        let item = Item {
            task,
            call,
            lane: LaneId::Score(row.model),
            arrival: now,
            rows: 1,
            tokens: row.tokens,
            image: row.image,
            kv_bytes: 0,
            running: false,
        };
        self.push(row.id, item);
    }

    pub(super) fn push_group(
        &mut self,
        task: TaskId,
        call: CallId,
        group: GroupEntry,
        now: Instant,
    ) {
        let item = Item {
            task,
            call,
            lane: LaneId::Step(group.model),
            arrival: now,
            rows: group.rows,
            tokens: group.tokens,
            image: group.kv.map(|(image, _)| image),
            kv_bytes: group.kv.map_or(0, |(_, bytes)| bytes),
            running: false,
        };
        self.push(group.id, item);
    }

    fn push(&mut self, id: ItemId, item: Item) {
        if let Some(lane) = self.lanes.get_mut(&item.lane) {
            lane.waiting.push(item.call, id);
            self.items.insert(id, item);
        }
    }

    pub(super) fn task_of(&self, id: ItemId) -> Option<TaskId> {
        self.items.get(&id).map(|item| item.task)
    }

    pub(super) fn set_tokens(&mut self, id: ItemId, tokens: usize) {
        if let Some(item) = self.items.get_mut(&id) {
            item.tokens = tokens;
        }
    }

    pub(super) fn waiting_rows(&self) -> usize {
        self.items.values().filter(|item| !item.running).map(|item| item.rows).sum()
    }

    pub(super) fn kv_bytes(&self) -> u64 {
        self.kv.values().map(|&(_, bytes)| bytes).sum()
    }

    /// Takes an item out, waiting or running.
    pub(super) fn remove(&mut self, id: ItemId) {
        let Some(item) = self.items.remove(&id) else { return };
        let lane = self.lanes.get_mut(&item.lane).expect("an item's lane exists");
        if !item.running {
            lane.waiting.remove(item.call, id);
            return;
        }
        lane.running.retain(|&running| running != id);
        if let (LaneId::Step(model), Some(image)) = (item.lane, item.image)
            && let Some((shared, _)) = self.kv.get_mut(&(model, image))
        {
            *shared -= 1;
            if *shared == 0 {
                self.kv.remove(&(model, image));
            }
        }
    }

    /// The lane whose turn it is among those that can run; else when the first could.
    pub(super) fn ready(
        &self,
        now: Instant,
        linger: Duration,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> (Option<LaneId>, Ready) {
        let mut best = Ready::No;
        for &id in &self.order {
            match (self.lane_ready(id, now, linger, settings, costs), best) {
                (ready @ Ready::Now(_), _) => return (Some(id), ready),
                (Ready::At(at), Ready::At(earlier)) => best = Ready::At(at.min(earlier)),
                (ready @ Ready::At(_), _) => best = ready,
                (Ready::No, _) => {}
            }
        }
        (None, best)
    }

    fn lane_ready(
        &self,
        id: LaneId,
        now: Instant,
        linger: Duration,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> Ready {
        let lane = &self.lanes[&id];
        if !lane.running.is_empty() {
            return Ready::Now(super::Trigger::Idle);
        }
        match lane.waiting.front() {
            None => return Ready::No,
            Some(_) if self.lacks_kv(id) => return Ready::No,
            Some(_) => {}
        }
        if linger.is_zero() {
            return Ready::Now(super::Trigger::Idle);
        }
        let mut fill = lane.fill(settings, costs.text(id));
        let (mut oldest, mut full) = (now, false);
        for item in self.items.values().filter(|item| item.lane == id) {
            oldest = oldest.min(item.arrival);
            full |= !fill.add(item);
        }
        after_linger(oldest, linger, full, now)
    }

    /// Fills a unit of this lane, whose turn is over with that.
    pub(super) fn take(
        &mut self,
        id: LaneId,
        now: Instant,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> Taken {
        self.order.retain(|&waiting| waiting != id);
        self.order.push_back(id);
        let cost = costs.text(id);
        match id {
            LaneId::Score(_) => self.take_rows(id, now, settings, cost),
            LaneId::Step(model) => self.take_groups(model, now, settings, cost),
        }
    }

    fn take_rows(
        &mut self,
        id: LaneId,
        now: Instant,
        settings: &EngineSettings,
        cost: Option<TextCost>,
    ) -> Taken {
        let lane = self.lanes.get_mut(&id).expect("a ready lane exists");
        let (mut fill, mut full, items) = (lane.fill(settings, cost), false, &self.items);
        let rows = lane.waiting.take(|row| {
            if fill.add(&items[&row]) {
                return Pick::Take;
            }
            full = true;
            Pick::Stop
        });
        let mut taken = Taken { work: fill.work, full, ..Taken::default() };
        for &row in &rows {
            let item = self.items.remove(&row).expect("a waiting row is known");
            taken.waited.push(now.saturating_duration_since(item.arrival));
            taken.left.push((item.task, row));
        }
        taken.items = rows;
        taken
    }

    fn take_groups(
        &mut self,
        model: ModelId,
        now: Instant,
        settings: &EngineSettings,
        cost: Option<TextCost>,
    ) -> Taken {
        let step = self.fill_step(model, settings, cost);
        let mut taken = Taken {
            joining: step.joins.len(),
            work: step.work,
            full: step.full,
            items: step.runs,
            ..Taken::default()
        };
        for &group in &step.joins {
            let item = self.items.get_mut(&group).expect("a waiting group is known");
            item.running = true;
            taken.waited.push(now.saturating_duration_since(item.arrival));
            if let Some(image) = item.image {
                self.kv.entry((model, image)).or_insert((0, item.kv_bytes)).0 += 1;
            }
        }
        let lane = self.lanes.get_mut(&LaneId::Step(model)).expect("a ready lane exists");
        lane.running.extend(&step.joins);
        taken.items.extend(step.joins);
        taken
    }

    /// What a model's groups may still take.
    fn room(&self, model: ModelId, max_rows: usize) -> Room {
        let running = &self.lanes[&LaneId::Step(model)].running;
        let elsewhere =
            self.order.iter().any(|&lane| lane != LaneId::Step(model) && self.lacks_kv(lane));
        Room {
            rows: running.iter().map(|group| self.items[group].rows).sum(),
            max_rows,
            kv: self.kv_bytes(),
            max_kv: if elsewhere { 0 } else { self.max_kv_bytes },
            images: self.kv.keys().filter(|(of, _)| *of == model).map(|&(_, i)| i).collect(),
        }
    }

    /// True for a model whose groups all wait because others hold the keys and values: what they give back is its
    /// own, or it would wait for ever.
    fn lacks_kv(&self, id: LaneId) -> bool {
        let lane = &self.lanes[&id];
        let Some(head) = lane.waiting.front().filter(|_| lane.running.is_empty()) else {
            return false;
        };
        let (held, needed) = (self.kv_bytes(), self.items[&head].kv_bytes);
        held > 0 && needed > 0 && held.saturating_add(needed) > self.max_kv_bytes
    }

    fn fill_step(
        &mut self,
        model: ModelId,
        settings: &EngineSettings,
        cost: Option<TextCost>,
    ) -> StepFill {
        let mut room = self.room(model, settings.max_batch_rows);
        let lane = self.lanes.get_mut(&LaneId::Step(model)).expect("a ready lane exists");
        let items = &self.items;
        let mut fill = lane.fill(settings, cost);
        fill.images.clone_from(&room.images);
        let mut running_of: HashMap<CallId, usize> = HashMap::new();
        let ranked: Vec<(usize, ItemId)> = lane
            .running
            .iter()
            .map(|&group| {
                let rank = running_of.entry(items[&group].call).or_default();
                *rank += 1;
                (*rank, group)
            })
            .collect();
        let mut step = StepFill::default();
        let mut joined_of: HashMap<CallId, usize> = HashMap::new();
        let mut open = true;
        // Round by round: no call gets its second group in before every call has its first.
        for round in 1.. {
            for &(_, group) in ranked.iter().filter(|&&(rank, _)| rank == round) {
                if !fill.add(&items[&group]) {
                    step.full = true;
                    step.work = fill.work;
                    return step;
                }
                step.runs.push(group);
            }
            if open {
                let joins = lane.waiting.take(|group| {
                    let item = &items[&group];
                    let has = running_of.get(&item.call).copied().unwrap_or(0)
                        + joined_of.get(&item.call).copied().unwrap_or(0);
                    if has >= round {
                        return Pick::Pass;
                    }
                    if !room.has(item) || !fill.add(item) {
                        (step.full, open) = (true, false);
                        return Pick::Stop;
                    }
                    room.add(item);
                    *joined_of.entry(item.call).or_default() += 1;
                    Pick::Take
                });
                step.joins.extend(joins);
            }
            let more_running = ranked.iter().any(|&(rank, _)| rank > round);
            if !more_running && (!open || lane.waiting.front().is_none()) {
                break;
            }
        }
        step.work = fill.work;
        step
    }
}

#[derive(Default)]
struct StepFill {
    runs: Vec<ItemId>,
    joins: Vec<ItemId>,
    work: f64,
    full: bool,
}

/// What running groups may hold together, those that sit out a step included.
struct Room {
    rows: usize,
    max_rows: usize,
    kv: u64,
    max_kv: u64,
    images: Vec<FeatureKey>,
}

impl Room {
    fn new_kv(&self, item: &Item) -> u64 {
        item.image.filter(|image| !self.images.contains(image)).map_or(0, |_| item.kv_bytes)
    }

    fn has(&self, item: &Item) -> bool {
        let new_kv = self.new_kv(item);
        let rows_fit = self.rows == 0 || self.rows + item.rows <= self.max_rows;
        let kv_fits = new_kv == 0 || self.kv == 0 || self.kv.saturating_add(new_kv) <= self.max_kv;
        rows_fit && kv_fits
    }

    fn add(&mut self, item: &Item) {
        self.kv += self.new_kv(item);
        self.rows += item.rows;
        self.images.extend(item.image.filter(|image| !self.images.contains(image)));
    }
}

impl Lane {
    fn fill<'a>(&self, settings: &'a EngineSettings, cost: Option<TextCost>) -> Fill<'a> {
        Fill {
            settings,
            cost,
            image_work: self.image_work,
            items: 0,
            rows: 0,
            tokens: 0,
            work: 0.0,
            images: Vec::new(),
        }
    }
}
