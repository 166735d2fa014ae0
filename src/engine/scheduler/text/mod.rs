//! Keeps the rows and groups that wait or run, and picks the next text unit. Each model has one lane for its
//! single-pass rows and one for its groups. Lanes take turns (round robin).

mod fill;
mod step;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::costs::{Costs, UnitCost};
use super::{Lane, Ready, after_linger};
use crate::engine::EngineSettings;
use crate::engine::ids::{CallId, FeatureKey, ItemId, TaskId};
use crate::fairness::{Pick, Turns};
use crate::task::ModelId;

/// Projecting the keys and values of this many image tokens costs as much as processing one text token. 577 image
/// tokens need 16 GFLOP, a text token 0.2 GFLOP (12 layers x 14 x 768 x 768 x 2), so the ratio is 7, rounded up to 8.
const IMAGE_TOKENS_PER_TOKEN: f64 = 8.0;

/// A single-pass row that is ready to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowEntry {
    pub(crate) id: ItemId,
    pub(crate) model: ModelId,
    /// Number of tokens that the row processes; 0 for an image's projection.
    pub(crate) tokens: usize,
    /// The image that the row attends to.
    pub(crate) image: Option<FeatureKey>,
}

/// A sequence or a beam search that is ready to join a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupEntry {
    pub(crate) id: ItemId,
    pub(crate) model: ModelId,
    /// Number of rows that the group occupies, one for each beam.
    pub(crate) rows: usize,
    /// Number of tokens that the group's first step (prefill) processes.
    pub(crate) tokens: usize,
    /// The image whose cross-attention KV cache the group shares with other groups, and the size of that cache in
    /// bytes.
    pub(crate) image_kv: Option<(FeatureKey, u64)>,
    /// Upper bound in bytes on the KV cache that the group does not share: that of its rows and of its question.
    pub(crate) own_kv: u64,
}

#[derive(Debug)]
struct TextItem {
    task: TaskId,
    call: CallId,
    lane: Lane,
    arrival: Instant,
    rows: usize,
    tokens: usize,
    image: Option<FeatureKey>,
    image_kv: u64,
    own_kv: u64,
    running: bool,
}

#[derive(Debug)]
struct LaneQueue {
    waiting: Turns<ItemId>,
    /// Groups that have joined, in joining order. Empty in a lane of single-pass rows.
    running: Vec<ItemId>,
    /// Cost of projecting one image to the model's keys and values, in tokens.
    image_work: f64,
}

/// All items that wait or run in the text stage.
#[derive(Debug)]
pub(super) struct TextStage {
    /// In order of arrival: whether a unit is full can depend on the order in which its items are added.
    items: BTreeMap<ItemId, TextItem>,
    lanes: HashMap<Lane, LaneQueue>,
    order: VecDeque<Lane>,
    /// For each image with a cross-attention KV cache: the number of running groups that share the cache, and its size
    /// in bytes.
    image_kv: HashMap<(ModelId, FeatureKey), (usize, u64)>,
    /// Number of bytes of KV cache that running groups do not share.
    own_kv: u64,
    max_kv_bytes: u64,
}

/// The items of the next text unit.
#[derive(Debug, Default)]
pub(super) struct TextBatch {
    pub(super) items: Vec<ItemId>,
    /// Number of items that join the running step with this unit; they are the last ones in `items`.
    pub(super) joining: usize,
    pub(super) work: f64,
    pub(super) waited: Vec<Duration>,
    /// Rows that have been removed from the queue, with their tasks.
    pub(super) left: Vec<(TaskId, ItemId)>,
    pub(super) full: bool,
}

impl TextStage {
    pub(super) fn new(image_tokens: &[usize], max_kv_bytes: u64) -> Self {
        let mut text = Self {
            items: BTreeMap::new(),
            lanes: HashMap::new(),
            order: VecDeque::new(),
            image_kv: HashMap::new(),
            own_kv: 0,
            max_kv_bytes,
        };
        for (model, &tokens) in image_tokens.iter().enumerate() {
            for lane in [Lane::Step(ModelId(model)), Lane::SinglePass(ModelId(model))] {
                let image_work = tokens as f64 / IMAGE_TOKENS_PER_TOKEN;
                let empty = LaneQueue { waiting: Turns::new(), running: Vec::new(), image_work };
                text.lanes.insert(lane, empty);
                text.order.push_back(lane);
            }
        }
        text
    }

    pub(super) fn push_row(&mut self, task: TaskId, call: CallId, row: RowEntry, now: Instant) {
        let item = TextItem {
            task,
            call,
            lane: Lane::SinglePass(row.model),
            arrival: now,
            rows: 1,
            tokens: row.tokens,
            image: row.image,
            image_kv: 0,
            own_kv: 0,
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
        let item = TextItem {
            task,
            call,
            lane: Lane::Step(group.model),
            arrival: now,
            rows: group.rows,
            tokens: group.tokens,
            image: group.image_kv.map(|(image, _)| image),
            image_kv: group.image_kv.map_or(0, |(_, bytes)| bytes),
            own_kv: group.own_kv,
            running: false,
        };
        self.push(group.id, item);
    }

    fn push(&mut self, id: ItemId, item: TextItem) {
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

    pub(super) fn image_work(&self, model: ModelId) -> f64 {
        self.lanes.get(&Lane::Step(model)).map_or(0.0, |lane| lane.image_work)
    }

    pub(super) fn waiting_rows(&self) -> usize {
        self.items.values().filter(|item| !item.running).map(|item| item.rows).sum()
    }

    /// Returns the number of rows of bulk work that wait or run.
    pub(super) fn bulk_rows(&self) -> usize {
        let bulk = self.items.values().filter(|item| item.call.client.is_bulk());
        bulk.map(|item| item.rows).sum()
    }

    /// Returns the number of rows of this lane, waiting or running, that are no bulk work.
    pub(super) fn interactive_rows(&self, lane: Lane) -> usize {
        let of_lane = |item: &&TextItem| item.lane == lane && !item.call.client.is_bulk();
        self.items.values().filter(of_lane).map(|item| item.rows).sum()
    }

    /// Returns all items. The flag of each is true if it is a running group.
    #[cfg(test)]
    pub(super) fn running(&self) -> BTreeMap<ItemId, bool> {
        self.items.iter().map(|(&id, item)| (id, item.running)).collect()
    }

    pub(super) fn kv_bytes(&self) -> u64 {
        self.own_kv + self.image_kv.values().map(|&(_, bytes)| bytes).sum::<u64>()
    }

    /// Removes a waiting or running item.
    pub(super) fn remove(&mut self, id: ItemId) {
        let Some(item) = self.items.remove(&id) else { return };
        let lane = self.lanes.get_mut(&item.lane).expect("an item's lane exists");
        if !item.running {
            lane.waiting.remove(item.call, id);
            return;
        }
        lane.running.retain(|&running| running != id);
        self.own_kv -= item.own_kv;
        if let (Lane::Step(model), Some(image)) = (item.lane, item.image)
            && let Some((shared, _)) = self.image_kv.get_mut(&(model, image))
        {
            *shared -= 1;
            if *shared == 0 {
                self.image_kv.remove(&(model, image));
            }
        }
    }

    /// Returns the first lane in round-robin order that can run now and has bulk work, or other work. If no such lane can
    /// run now, returns the earliest time at which one can.
    pub(super) fn ready(
        &self,
        bulk: bool,
        now: Instant,
        linger: Duration,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> (Option<Lane>, Ready) {
        let mut best = Ready::No;
        for &id in self.order.iter().filter(|id| self.has_work(**id, bulk)) {
            match (self.lane_ready(id, now, linger, settings, costs), best) {
                (ready @ Ready::Now(_), _) => return (Some(id), ready),
                (Ready::At(at), Ready::At(earlier)) => best = Ready::At(at.min(earlier)),
                (ready @ Ready::At(_), _) => best = ready,
                (Ready::No, _) => {}
            }
        }
        (None, best)
    }

    /// True if the lane has bulk work, or other work.
    fn has_work(&self, id: Lane, bulk: bool) -> bool {
        let lane = &self.lanes[&id];
        let is_of_class = |group| self.items[group].call.client.is_bulk() == bulk;
        lane.waiting.front_of(bulk).is_some() || lane.running.iter().any(is_of_class)
    }

    fn lane_ready(
        &self,
        id: Lane,
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
            Some(_) if self.is_blocked_on_kv(id) => return Ready::No,
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

    /// Fills a unit of this lane, which begins with bulk work or with other work, and ends the lane's turn.
    pub(super) fn take(
        &mut self,
        (id, bulk): (Lane, bool),
        now: Instant,
        settings: &EngineSettings,
        costs: &Costs,
    ) -> TextBatch {
        self.order.retain(|&waiting| waiting != id);
        self.order.push_back(id);
        let cost = costs.text(id);
        match id {
            Lane::SinglePass(_) => self.take_rows((id, bulk), now, settings, cost),
            Lane::Step(model) => self.take_groups((model, bulk), now, settings, cost),
        }
    }

    fn take_rows(
        &mut self,
        (id, bulk): (Lane, bool),
        now: Instant,
        settings: &EngineSettings,
        cost: Option<UnitCost>,
    ) -> TextBatch {
        let lane = self.lanes.get_mut(&id).expect("a ready lane exists");
        let (mut fill, mut full, items) = (lane.fill(settings, cost), false, &self.items);
        let pick = |row| {
            if fill.add(&items[&row]) {
                return Pick::Take;
            }
            full = true;
            Pick::Stop
        };
        let rows = if bulk { lane.waiting.take_bulk(pick) } else { lane.waiting.take(pick) };
        let mut taken = TextBatch { work: fill.work, full, ..TextBatch::default() };
        for &row in &rows {
            let item = self.items.remove(&row).expect("a waiting row is known");
            taken.waited.push(now.saturating_duration_since(item.arrival));
            taken.left.push((item.task, row));
        }
        taken.items = rows;
        taken
    }

    /// True if this lane runs no group, and its next group must wait because the KV caches of the other models leave
    /// too little of `max_kv_bytes`. The bytes that those models release are then reserved for this lane; otherwise the
    /// lane might wait for ever.
    fn is_blocked_on_kv(&self, id: Lane) -> bool {
        let lane = &self.lanes[&id];
        let Some(head) = lane.waiting.front().filter(|_| lane.running.is_empty()) else {
            return false;
        };
        let head = &self.items[&head];
        // No group of this model runs, so the next group cannot share the KV cache of its image with another.
        let (held, needed) = (self.kv_bytes(), head.own_kv + head.image_kv);
        held > 0 && needed > 0 && held.saturating_add(needed) > self.max_kv_bytes
    }
}
