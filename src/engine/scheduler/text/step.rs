//! Fills the next decode step of one model's groups (continuous batching).
//!
//! Running groups come first, in the order in which they joined. But every client gets its first group into the step
//! before any client gets a second, and the same holds for the calls of one client. So a client or call with many
//! groups makes room for a new client or call. Groups left out of a step keep their state and continue later. Nothing
//! overtakes a group that waits for capacity, so every group finishes eventually. Bulk work comes behind all other work,
//! unless the step is one of its own turns, and joins only up to half of the rows and bytes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::{TextBatch, TextItem, TextStage};
use crate::engine::EngineSettings;
use crate::engine::ids::{CallId, FeatureKey, ItemId};
use crate::engine::scheduler::{Lane, UnitCost};
use crate::fairness::{self, ClientId, Pick};
use crate::task::ModelId;

impl TextStage {
    pub(super) fn take_groups(
        &mut self,
        (model, bulk): (ModelId, bool),
        now: Instant,
        settings: &EngineSettings,
        cost: Option<UnitCost>,
    ) -> TextBatch {
        let step = self.fill_step((model, bulk), settings, cost);
        let mut taken = TextBatch {
            joining: step.joins.len(),
            work: step.work,
            full: step.full,
            items: step.runs,
            ..TextBatch::default()
        };
        for &group in &step.joins {
            let item = self.items.get_mut(&group).expect("a waiting group is known");
            item.running = true;
            taken.waited.push(now.saturating_duration_since(item.arrival));
            if let Some(image) = item.image {
                self.image_kv.entry((model, image)).or_insert((0, item.image_kv)).0 += 1;
            }
            self.own_kv += item.own_kv;
        }
        let lane = self.lanes.get_mut(&Lane::Step(model)).expect("a ready lane exists");
        lane.running.extend(&step.joins);
        taken.items.extend(step.joins);
        taken
    }

    /// Returns the capacity for this model's groups, and how much of it is in use.
    fn step_capacity(&self, model: ModelId, max_rows: usize) -> StepCapacity {
        let running = &self.lanes[&Lane::Step(model)].running;
        let elsewhere =
            self.order.iter().any(|&lane| lane != Lane::Step(model) && self.is_blocked_on_kv(lane));
        let rows = |group: &ItemId| self.items[group].rows;
        let is_bulk = |group: &&ItemId| self.items[*group].call.client.is_bulk();
        StepCapacity {
            rows: running.iter().map(rows).sum(),
            bulk_rows: running.iter().filter(is_bulk).map(rows).sum(),
            max_rows,
            kv: self.kv_bytes(),
            max_kv: if elsewhere { 0 } else { self.max_kv_bytes },
            images: self.image_kv.keys().filter(|(of, _)| *of == model).map(|&(_, i)| i).collect(),
        }
    }

    fn fill_step(
        &mut self,
        (model, bulk): (ModelId, bool),
        settings: &EngineSettings,
        cost: Option<UnitCost>,
    ) -> StepFill {
        let mut capacity = self.step_capacity(model, settings.max_batch_rows);
        let lane = self.lanes.get_mut(&Lane::Step(model)).expect("a ready lane exists");
        let mut fill = lane.fill(settings, cost);
        fill.images.clone_from(&capacity.images);
        let mut groups = Groups::default();
        let mut running = Running::new(&lane.running, &self.items, &mut groups);
        running.clients.sort_by_key(|client| client.is_bulk() != bulk);
        let (mut step, mut open) = (StepFill::default(), true);
        for round in 1.. {
            let before = step.runs.len() + step.joins.len();
            for client in running.clients.clone() {
                while groups.chosen(client) < round {
                    let Some((rank, group)) = running.next(client) else { break };
                    // A waiting call that runs fewer groups goes first, so this group makes room for a group of that
                    // call.
                    if open && lane.waiting.calls_of(client).any(|call| groups.of(call) + 1 < rank)
                    {
                        break;
                    }
                    if !fill.add(&self.items[&group]) {
                        if client.is_bulk() && !bulk {
                            // A step for interactive work, which may still have groups that fit.
                            running.leave_out(client);
                            break;
                        }
                        return StepFill { full: true, work: fill.work, ..step };
                    }
                    running.take(client);
                    groups.choose(client);
                    step.runs.push(group);
                }
            }
            if open {
                let items = &self.items;
                let joins = lane.waiting.take(|group| {
                    let (item, client) = (&items[&group], items[&group].call.client);
                    if groups.chosen(client) >= round {
                        return Pick::PassClient;
                    }
                    let (of_client, of_call) = (groups.of_client(client), groups.of(item.call));
                    if running.next(client).is_some_and(|(rank, _)| of_call + 1 >= rank) {
                        return Pick::Pass;
                    }
                    let has_capacity = capacity.has(item, (of_client == 0, of_call == 0));
                    let is_added = has_capacity && fill.add(item);
                    if !is_added && client.is_bulk() {
                        return Pick::PassClient;
                    }
                    if !is_added {
                        open = false;
                        return Pick::Stop;
                    }
                    capacity.add(item);
                    groups.add(item.call);
                    groups.choose(client);
                    Pick::Take
                });
                step.joins.extend(joins);
            }
            // If nothing was added, only bulk work waits, and it has no room.
            let is_stuck = step.runs.len() + step.joins.len() == before;
            if running.is_empty() && (!open || is_stuck || lane.waiting.front().is_none()) {
                break;
            }
        }
        StepFill { full: !open, work: fill.work, ..step }
    }
}

/// Number of groups of each client and of each call, and number of each client's groups that are in the step.
#[derive(Default)]
struct Groups {
    of_client: HashMap<ClientId, usize>,
    of_call: HashMap<CallId, usize>,
    chosen: HashMap<ClientId, usize>,
}

impl Groups {
    fn of_client(&self, client: ClientId) -> usize {
        self.of_client.get(&client).copied().unwrap_or(0)
    }

    fn of(&self, call: CallId) -> usize {
        self.of_call.get(&call).copied().unwrap_or(0)
    }

    fn chosen(&self, client: ClientId) -> usize {
        self.chosen.get(&client).copied().unwrap_or(0)
    }

    /// Counts one more group of the call. Returns the group's rank: its position among the groups of its call, from 1.
    fn add(&mut self, call: CallId) -> usize {
        *self.of_client.entry(call.client).or_default() += 1;
        let of_call = self.of_call.entry(call).or_default();
        *of_call += 1;
        *of_call
    }

    fn choose(&mut self, client: ClientId) {
        *self.chosen.entry(client).or_default() += 1;
    }
}

/// Running groups that are not in the step yet, by client.
struct Running {
    /// Clients in the order in which their first groups joined.
    clients: Vec<ClientId>,
    /// Per client: its groups as `(rank, id)`, where the rank is the group's position among the groups of its call,
    /// from 1. Sorted by rank, then by joining order.
    queues: HashMap<ClientId, VecDeque<(usize, ItemId)>>,
}

impl Running {
    /// Queues the groups of `joined`, which is in joining order, and counts them in `groups`.
    fn new(joined: &[ItemId], items: &BTreeMap<ItemId, TextItem>, groups: &mut Groups) -> Self {
        let mut running = Self { clients: Vec::new(), queues: HashMap::new() };
        for &group in joined {
            let call = items[&group].call;
            let queue = running.queues.entry(call.client).or_default();
            if queue.is_empty() {
                running.clients.push(call.client);
            }
            queue.push_back((groups.add(call), group));
        }
        for queue in running.queues.values_mut() {
            // The sort is stable, so equal ranks keep their joining order.
            queue.make_contiguous().sort_by_key(|&(rank, _)| rank);
        }
        running
    }

    fn next(&self, client: ClientId) -> Option<(usize, ItemId)> {
        self.queues.get(&client)?.front().copied()
    }

    fn take(&mut self, client: ClientId) {
        if let Some(queue) = self.queues.get_mut(&client) {
            queue.pop_front();
        }
    }

    /// Leaves all further groups of the client out of the step.
    fn leave_out(&mut self, client: ClientId) {
        self.queues.remove(&client);
    }

    fn is_empty(&self) -> bool {
        self.queues.values().all(VecDeque::is_empty)
    }
}

#[derive(Default)]
struct StepFill {
    runs: Vec<ItemId>,
    joins: Vec<ItemId>,
    work: f64,
    full: bool,
}

/// Number of rows and bytes of KV cache that all running groups use, including groups left out of a step, and the
/// limits on both.
struct StepCapacity {
    rows: usize,
    /// Part of `rows` that is bulk work.
    bulk_rows: usize,
    max_rows: usize,
    kv: u64,
    max_kv: u64,
    images: Vec<FeatureKey>,
}

impl StepCapacity {
    fn new_kv(&self, item: &TextItem) -> u64 {
        let new_image = item.image.filter(|image| !self.images.contains(image));
        item.own_kv + new_image.map_or(0, |_| item.image_kv)
    }

    /// True if a waiting group fits. A quarter of the capacity is reserved for calls without running groups, so that a
    /// small call need not wait until a large one has finished. Clients without running groups may exceed the capacity
    /// by a quarter, so that a client with many calls cannot lock them out.
    fn has(&self, item: &TextItem, (first_of_client, first_of_call): (bool, bool)) -> bool {
        let open = |most: u64| match (first_of_client, first_of_call) {
            (true, _) => fairness::with_reserve(most),
            (false, true) => most,
            (false, false) => most - most / 4,
        };
        // Bulk work leaves half of rows and bytes to others, but one group of it may always run.
        if item.call.client.is_bulk() && self.bulk_rows > 0 {
            let has_rows = self.bulk_rows + item.rows <= self.max_rows / 2;
            if !has_rows || self.kv.saturating_add(self.new_kv(item)) > self.max_kv / 2 {
                return false;
            }
        }
        let (max_rows, max_kv) = (open(self.max_rows as u64), open(self.max_kv));
        let new_kv = self.new_kv(item);
        let rows_fit = self.rows == 0 || (self.rows + item.rows) as u64 <= max_rows;
        let kv_fits = new_kv == 0 || self.kv == 0 || self.kv.saturating_add(new_kv) <= max_kv;
        rows_fit && kv_fits
    }

    fn add(&mut self, item: &TextItem) {
        self.kv += self.new_kv(item);
        self.rows += item.rows;
        if item.call.client.is_bulk() {
            self.bulk_rows += item.rows;
        }
        self.images.extend(item.image.filter(|image| !self.images.contains(image)));
    }
}
