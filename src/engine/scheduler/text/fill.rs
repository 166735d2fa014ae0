//! A text unit that is being filled. It keeps track of its contents and decides whether another item fits.

use super::{LaneQueue, TextItem};
use crate::engine::EngineSettings;
use crate::engine::ids::FeatureKey;
use crate::engine::scheduler::UnitCost;

/// Maximum time of a unit with bulk work, as a multiple of its time without.
const MIXED: f64 = 1.25;

/// A text unit that is being filled, with its limits.
pub(super) struct Fill<'a> {
    settings: &'a EngineSettings,
    cost: Option<UnitCost>,
    image_work: f64,
    items: usize,
    rows: usize,
    tokens: usize,
    pub(super) work: f64,
    /// Work when the last item was added that is not bulk work; `None` before the first.
    interactive_work: Option<f64>,
    /// Images whose keys and values the unit reuses or has already been charged for.
    pub(super) images: Vec<FeatureKey>,
}

impl Fill<'_> {
    /// Adds an item if it fits, and returns whether it was added. The first item always fits.
    pub(super) fn add(&mut self, item: &TextItem) -> bool {
        let new_image = item.image.filter(|image| !self.images.contains(image) && !item.running);
        let image_work = if new_image.is_some() { self.image_work } else { 0.0 };
        let work = self.work + item.tokens as f64 + image_work;
        let is_bulk = item.call.client.is_bulk();
        // Bulk work may lengthen a unit of other work only a little. It costs little where most of the time is fixed.
        let mixed = self.interactive_work.filter(|_| is_bulk);
        let in_time = self.cost.is_some_and(|cost| {
            let budget = cost.budget(self.settings.unit_time());
            let most = mixed.map_or(budget, |work| budget.min(MIXED * cost.seconds(work)));
            cost.seconds(work) <= most
        });
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
        if !is_bulk {
            self.interactive_work = Some(work);
        }
        self.images.extend(new_image);
        true
    }
}

impl LaneQueue {
    pub(super) fn fill<'a>(
        &self,
        settings: &'a EngineSettings,
        cost: Option<UnitCost>,
    ) -> Fill<'a> {
        Fill {
            settings,
            cost,
            image_work: self.image_work,
            items: 0,
            rows: 0,
            tokens: 0,
            work: 0.0,
            interactive_work: None,
            images: Vec::new(),
        }
    }
}
