//! The next step of one model's groups.
//!
//! Running groups come first, in the order in which they joined, but no call's second group before every call's
//! first: a call with many groups steps aside for one that arrives, and the groups left out keep their state and
//! come back. Nothing overtakes a group that waits for room, so every group is finished in the end.

use std::collections::HashMap;
use std::time::Instant;

use super::{Item, Taken, Text};
use crate::engine::EngineSettings;
use crate::engine::ids::{CallId, FeatureKey, ItemId};
use crate::engine::scheduler::turns::Pick;
use crate::engine::scheduler::{LaneId, TextCost};
use crate::task::ModelId;

impl Text {
    pub(super) fn take_groups(
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
                self.image_kv.entry((model, image)).or_insert((0, item.image_kv)).0 += 1;
            }
            self.own_kv += item.own_kv;
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
            images: self.image_kv.keys().filter(|(of, _)| *of == model).map(|&(_, i)| i).collect(),
        }
    }

    fn fill_step(
        &mut self,
        model: ModelId,
        settings: &EngineSettings,
        cost: Option<TextCost>,
    ) -> StepFill {
        let mut room = self.room(model, settings.max_batch_rows);
        let lane = self.lanes.get_mut(&LaneId::Step(model)).expect("a ready lane exists");
        let mut fill = lane.fill(settings, cost);
        fill.images.clone_from(&room.images);
        let mut groups_of: HashMap<CallId, usize> = HashMap::new();
        let ranked = ranked(&lane.running, &self.items, &mut groups_of);
        let mut step = StepFill::default();
        let mut open = true;
        for round in 1.. {
            for &(_, group) in ranked.iter().filter(|&&(rank, _)| rank == round) {
                if !fill.add(&self.items[&group]) {
                    return StepFill { full: true, work: fill.work, ..step };
                }
                step.runs.push(group);
            }
            if open {
                let items = &self.items;
                let joins = lane.waiting.take(|group| {
                    let item = &items[&group];
                    let has = groups_of.entry(item.call).or_default();
                    if *has >= round {
                        return Pick::Pass;
                    }
                    if !room.has(item, *has == 0) || !fill.add(item) {
                        open = false;
                        return Pick::Stop;
                    }
                    room.add(item);
                    *has += 1;
                    Pick::Take
                });
                step.joins.extend(joins);
            }
            let more_running = ranked.iter().any(|&(rank, _)| rank > round);
            if !more_running && (!open || lane.waiting.front().is_none()) {
                break;
            }
        }
        StepFill { full: !open, work: fill.work, ..step }
    }
}

/// Running groups in the order in which they joined, each with its place among those of its call (from 1);
/// `groups_of` counts them.
fn ranked(
    running: &[ItemId],
    items: &HashMap<ItemId, Item>,
    groups_of: &mut HashMap<CallId, usize>,
) -> Vec<(usize, ItemId)> {
    let rank = |&group: &ItemId| {
        let rank = groups_of.entry(items[&group].call).or_default();
        *rank += 1;
        (*rank, group)
    };
    running.iter().map(rank).collect()
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
        let new_image = item.image.filter(|image| !self.images.contains(image));
        item.own_kv + new_image.map_or(0, |_| item.image_kv)
    }

    /// A quarter is kept for calls of which nothing runs: a large call cannot lock a small one out until it ends.
    fn has(&self, item: &Item, first_of_call: bool) -> bool {
        let open = |most: u64| if first_of_call { most } else { most - most / 4 };
        let (max_rows, max_kv) = (open(self.max_rows as u64), open(self.max_kv));
        let new_kv = self.new_kv(item);
        let rows_fit = self.rows == 0 || (self.rows + item.rows) as u64 <= max_rows;
        let kv_fits = new_kv == 0 || self.kv == 0 || self.kv.saturating_add(new_kv) <= max_kv;
        rows_fit && kv_fits
    }

    fn add(&mut self, item: &Item) {
        self.kv += self.new_kv(item);
        self.rows += item.rows;
        self.images.extend(item.image.filter(|image| !self.images.contains(image)));
    }
}
