//! Estimates how long admitted work takes, from the worker's measurements. This module is pure arithmetic.
//!
//! Text work is counted in tokens. A row processes `row_tokens` tokens, spread over `row_units` work units. A unit
//! takes `unit_fixed` seconds (to read the weights) plus `unit_per_token` seconds for each token, and contains as many
//! tokens as can be processed within `unit_time`. Rows that do not fit into a unit wait until other rows have finished.
//! Before the first measurement every estimate is zero, so that calls are admitted and the worker can measure.

use std::time::Duration;

use crate::engine::EngineSettings;
use crate::engine::moving_average::MovingAverage;
use crate::engine::scheduler::UnitCost;

/// Costs that the worker has measured, over all towers and models.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimates {
    /// Seconds to encode one image.
    pub image: Option<f64>,
    /// Seconds that a text unit takes in addition to the time for its tokens.
    pub unit_fixed: Option<f64>,
    /// Seconds that each token adds to a text unit.
    pub unit_per_token: Option<f64>,
    /// Average number of tokens that a row processes in all its units together.
    pub row_tokens: Option<f64>,
    /// Average number of units that a row takes part in.
    pub row_units: Option<f64>,
    /// Recent miss rate of the feature cache: the fraction of images that were neither cached nor in flight when looked
    /// up.
    pub image_misses: Option<f64>,
    /// True if the last measurement of vision or of text is older than a minute.
    pub stale: bool,
}

/// Lower bound on the miss rate. Even if all recent images were cached, each further image counts as this fraction of
/// an encoding.
const LEAST_MISSES: f64 = 0.05;

/// The work that is scheduled before a call.
#[derive(Debug, Default)]
pub(super) struct WorkAhead {
    /// Number of rows that are scheduled before the call, each weighted by its client's `row_weight`.
    pub(super) rows: f64,
    /// Expected number of encodings that are scheduled before the call.
    pub(super) images: f64,
    /// True if rows that do not wait for images are queued or running. In that case the encoding of `images` shares the
    /// worker's time with those rows.
    pub(super) text_has_other_work: bool,
    /// True if other calls have images to encode, including images that are scheduled after those of this call. In that
    /// case the processing of `rows` shares the worker's time with the encoding of those images.
    pub(super) vision_has_other_work: bool,
}

/// Cost model of the text stage, in tokens and units.
struct TextCostModel {
    cost: UnitCost,
    /// Number of tokens that fit into one unit.
    unit_tokens: f64,
    /// Number of tokens that one row processes in one unit.
    row_tokens: f64,
    /// Number of units that one row needs.
    row_units: f64,
}

/// Recent cost of one client's work. Clients differ: one sends the same image again and again, another only new images.
/// An average over all clients would estimate the same wait for both.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Profile {
    /// Fraction of the client's images that were misses in the feature cache; a moving average.
    image_misses: MovingAverage,
    /// Number of tokens that one of the client's rows processes in all its units together; a moving average.
    row_tokens: MovingAverage,
}

/// Weight of the newest value in the moving averages of a client.
const NEWEST_OF_CLIENT: f64 = 0.05;

impl Profile {
    /// Records whether an image was a cache miss. `average` holds the averages over all clients, from which the
    /// client's moving average starts.
    pub(super) fn record_lookup(&mut self, missed: bool, average: &Estimates) {
        self.image_misses = self.image_misses.or(average.image_misses);
        self.image_misses.add(if missed { 1.0 } else { 0.0 }, NEWEST_OF_CLIENT);
    }

    pub(super) fn record_row(&mut self, tokens: f64, average: &Estimates) {
        self.row_tokens = self.row_tokens.or(average.row_tokens);
        self.row_tokens.add(tokens, NEWEST_OF_CLIENT);
    }
}

impl Estimates {
    fn text(&self, settings: &EngineSettings) -> Option<TextCostModel> {
        let cost = UnitCost { fixed: self.unit_fixed?, per_item: self.unit_per_token? };
        let row_units = self.row_units?.max(1.0);
        let row_tokens = self.row_tokens?.max(1.0) / row_units;
        let in_time = (cost.budget(settings.unit_time()) - cost.fixed) / cost.per_item.max(1e-9);
        let in_rows = row_tokens * settings.max_batch_rows as f64;
        let most = in_rows.min(settings.max_batch_tokens as f64).max(row_tokens);
        Some(TextCostModel {
            cost,
            unit_tokens: in_time.clamp(row_tokens, most),
            row_tokens,
            row_units,
        })
    }

    /// Returns how many of `images` images will probably have to be encoded. The images belong to a client with this
    /// profile and have not been looked up yet.
    pub(super) fn encodings(&self, images: usize, profile: Profile) -> f64 {
        let misses = profile.image_misses.or(self.image_misses).value().unwrap_or(1.0);
        misses.clamp(LEAST_MISSES, 1.0) * images as f64
    }

    /// Returns the cost of one row of this client, as a multiple of the average row's cost. Rows differ: a caption
    /// processes ten times as many tokens as a short text.
    pub(super) fn row_weight(&self, profile: Profile) -> f64 {
        match (profile.row_tokens.value(), self.row_tokens) {
            (Some(own), Some(average)) if average > 0.0 => own / average,
            _ => 1.0,
        }
    }

    fn vision_seconds(&self, images: f64) -> f64 {
        self.image.unwrap_or(0.0) * images
    }

    /// Returns the total worker time for `rows` rows and `images` encodings.
    pub(super) fn work(&self, rows: f64, images: f64, settings: &EngineSettings) -> Duration {
        let text = self.text(settings).map_or(0.0, |text| text.seconds(rows));
        seconds(self.vision_seconds(images) + text)
    }

    /// Returns the estimated wait of a call behind `queue`. Images are encoded one after another; rows share units as
    /// long as there is room. While both stages have work, each stage gets only its share of the worker's time. Other
    /// calls can keep a stage busy during the whole wait. But if every row waits for an image of the queue, no other
    /// text work competes with the queue, so the wait is at most the queue's total work.
    pub(super) fn estimated_wait(&self, queue: &WorkAhead, settings: &EngineSettings) -> Duration {
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

    /// Returns a lower bound on the time that an idle server needs for `rows` rows and `images` encodings. The kind of
    /// call is not known at this point, so the bound assumes the cheapest kind, whose rows need one unit each.
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
    /// Returns the number of units needed to run each row once; at least one if there is any row.
    fn units(&self, rows: f64) -> f64 {
        (rows * self.row_tokens / self.unit_tokens).max(if rows > 0.0 { 1.0 } else { 0.0 })
    }

    fn seconds(&self, rows: f64) -> f64 {
        let units = self.units(rows);
        self.row_units * (units * self.cost.fixed + rows * self.row_tokens * self.cost.per_item)
    }

    /// Returns the wait in seconds behind `rows` rows: the time for the rows that do not fit into the first unit; 0 if
    /// all fit.
    fn queued_seconds(&self, rows: f64) -> f64 {
        let over = rows - self.unit_tokens / self.row_tokens;
        if over > 0.0 { self.seconds(over) } else { 0.0 }
    }
}

/// Converts seconds to a duration within 0 to 1,000,000 s, so that no estimate overflows, however wrong it is.
fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, 1e6))
}
