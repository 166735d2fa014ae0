//! Estimates of how long admitted work takes, from the worker's measurements. Pure arithmetic.
//!
//! Text work is counted in tokens: a row needs `row_tokens` tokens over `row_units` work units. A unit costs
//! `unit_fixed` (reading the weights) plus `unit_per_token` for each token, and holds as many tokens as fit its time.
//! Rows beyond that wait until others leave. Before anything is measured every estimate is zero: admit, and learn.

use std::time::Duration;

use crate::engine::EngineSettings;
use crate::engine::scheduler::TextCost;

/// Costs that the worker has measured, over all towers and models.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimates {
    /// Seconds to encode one image.
    pub image: Option<f64>,
    /// Seconds of a text unit without its tokens.
    pub unit_fixed: Option<f64>,
    /// Seconds that each token adds to a text unit.
    pub unit_per_token: Option<f64>,
    /// Tokens that a row runs in all, from its first unit to its last.
    pub row_tokens: Option<f64>,
    /// Units that a row takes part in, from its first to its last.
    pub row_units: Option<f64>,
    /// Recent miss rate of the feature cache: the share of images neither cached nor in flight when looked up.
    pub image_misses: Option<f64>,
    /// True if a measurement is older than a minute.
    pub stale: bool,
}

/// Lower bound on the miss rate: even if all recent images were cached, the next ones cost this part of an encoding.
const LEAST_MISSES: f64 = 0.05;

/// The queue ahead of a call.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Rows that are scheduled before the call.
    pub(super) rows: f64,
    /// Expected number of encodings that are scheduled before the call.
    pub(super) images: f64,
    /// True if rows without images of their own are queued or running. Then text has work left after these images.
    pub(super) text_has_other_work: bool,
    /// True if other calls have images to encode, even if those come after the call's own.
    pub(super) vision_has_other_work: bool,
}

/// Cost model of the text stage, in tokens and units.
struct TextCostModel {
    cost: TextCost,
    /// Tokens that fit into one unit.
    unit_tokens: f64,
    /// Tokens that one row runs in one unit.
    row_tokens: f64,
    /// Units that one row needs.
    row_units: f64,
}

/// What the work of one client has cost recently. Clients differ: one sends the same image again and again, another only
/// new ones, and averages over all of them would promise both the same wait.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Profile {
    /// Share of its images that were misses in the feature cache, as a moving average.
    image_misses: Option<f64>,
    /// Tokens that one of its rows runs in all, as a moving average.
    row_tokens: Option<f64>,
}

/// Weight of the newest value in the moving averages of a client.
const NEWEST_OF_CLIENT: f64 = 0.05;

impl Profile {
    /// `average` is over all clients: a new client is like the others until it shows otherwise.
    pub(super) fn record_lookup(&mut self, missed: bool, average: &Estimates) {
        follow(&mut self.image_misses, average.image_misses, if missed { 1.0 } else { 0.0 });
    }

    pub(super) fn record_row(&mut self, tokens: f64, average: &Estimates) {
        follow(&mut self.row_tokens, average.row_tokens, tokens);
    }
}

fn follow(mean: &mut Option<f64>, start: Option<f64>, value: f64) {
    let old = mean.or(start).unwrap_or(value);
    *mean = Some(old + NEWEST_OF_CLIENT * (value - old));
}

impl Estimates {
    fn text(&self, settings: &EngineSettings) -> Option<TextCostModel> {
        let cost = TextCost { fixed: self.unit_fixed?, per_token: self.unit_per_token? };
        let row_units = self.row_units?.max(1.0);
        let row_tokens = self.row_tokens?.max(1.0) / row_units;
        let in_time = (cost.budget(settings.unit_time) - cost.fixed) / cost.per_token.max(1e-9);
        let in_rows = row_tokens * settings.max_batch_rows as f64;
        let most = in_rows.min(settings.max_batch_tokens as f64).max(row_tokens);
        Some(TextCostModel {
            cost,
            unit_tokens: in_time.clamp(row_tokens, most),
            row_tokens,
            row_units,
        })
    }

    /// Expected number of encodings for `images` images that have not been looked up yet.
    /// `profile` is that of the client who asks for them.
    pub(super) fn encodings(&self, images: usize, profile: Profile) -> f64 {
        let misses = profile.image_misses.or(self.image_misses).unwrap_or(1.0);
        misses.clamp(LEAST_MISSES, 1.0) * images as f64
    }

    /// How many average rows one row of a client costs: a caption runs ten times the tokens of a short text.
    pub(super) fn row_weight(&self, profile: Profile) -> f64 {
        match (profile.row_tokens, self.row_tokens) {
            (Some(own), Some(average)) if average > 0.0 => own / average,
            _ => 1.0,
        }
    }

    fn vision_seconds(&self, images: f64) -> f64 {
        self.image.unwrap_or(0.0) * images
    }

    /// Total worker time for `rows` rows and `images` encodings.
    pub(super) fn work(&self, rows: f64, images: f64, settings: &EngineSettings) -> Duration {
        let text = self.text(settings).map_or(0.0, |text| text.seconds(rows));
        seconds(self.vision_seconds(images) + text)
    }

    /// Estimated wait of a call behind `queue`. Images are encoded one after another; rows share units as far as these
    /// have room. While both stages have work, each proceeds at its share of the worker. That lasts as long as more
    /// work comes; only rows that belong to the images in the queue end with them.
    pub(super) fn wait(&self, queue: &Queue, settings: &EngineSettings) -> Duration {
        let vision_share = f64::from(settings.vision_share_percent) / 100.0;
        let share = |shared: bool, share: f64| if shared { share } else { 1.0 };
        let vision =
            self.vision_seconds(queue.images) / share(queue.text_has_other_work, vision_share);
        let queued = self.text(settings).map_or(0.0, |text| text.queued_seconds(queue.rows));
        let text = queued / share(queue.vision_has_other_work, 1.0 - vision_share);
        let wait = seconds(vision + text);
        if queue.text_has_other_work {
            wait
        } else {
            wait.min(self.work(queue.rows, queue.images, settings))
        }
    }

    /// Lower bound on the time that an idle server needs for `rows` and `images`: each row needs at least one unit. The
    /// kind of call is not known, so this is the bound of the cheapest kind.
    pub(super) fn least_service(
        &self,
        rows: usize,
        images: f64,
        settings: &EngineSettings,
    ) -> Duration {
        let one_pass = |text: TextCostModel| TextCostModel { row_units: 1.0, ..text };
        let text = self.text(settings).map_or(0.0, |text| one_pass(text).seconds(rows as f64));
        seconds(self.vision_seconds(images) + text)
    }
}

impl TextCostModel {
    /// Units until each row has run once; at least one if there is any row.
    fn units(&self, rows: f64) -> f64 {
        (rows * self.row_tokens / self.unit_tokens).max(if rows > 0.0 { 1.0 } else { 0.0 })
    }

    fn seconds(&self, rows: f64) -> f64 {
        let units = self.units(rows);
        self.row_units * (units * self.cost.fixed + rows * self.row_tokens * self.cost.per_token)
    }

    /// Time until the rows that do not fit into a unit have found room in one.
    fn queued_seconds(&self, rows: f64) -> f64 {
        let over = rows - self.unit_tokens / self.row_tokens;
        if over > 0.0 { self.seconds(over) } else { 0.0 }
    }
}

/// Bounded, so that no estimate overflows, however wrong it is.
fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, 1e6))
}
