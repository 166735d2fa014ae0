//! How long admitted work will take, from what the worker has measured. Pure arithmetic.
//!
//! Text work is counted in tokens: a row needs `row_tokens` of them over `row_units` units. A unit costs
//! `unit_fixed` (reading the weights) and `unit_per_token`, and holds as many tokens as fit its time; rows beyond
//! that wait for others to leave. Before anything is measured every estimate is zero: admit and learn.

use std::time::Duration;

use crate::engine::EngineSettings;
use crate::engine::scheduler::TextCost;

/// What the worker has measured, all towers and models together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimates {
    /// Seconds to encode one image.
    pub image: Option<f64>,
    /// Seconds of a text unit apart from its tokens.
    pub unit_fixed: Option<f64>,
    /// Seconds that each token adds to a text unit.
    pub unit_per_token: Option<f64>,
    /// Tokens that a row runs from its first unit to its last.
    pub row_tokens: Option<f64>,
    /// Units that a row takes part in.
    pub row_units: Option<f64>,
    /// Share of images that were neither cached nor under way when they were looked up, of late.
    pub image_misses: Option<f64>,
    /// Something of this has not been measured for a minute.
    pub stale: bool,
}

/// However many images were cached of late, the next ones cost this part of an encoding.
const LEAST_MISSES: f64 = 0.05;

/// What stands before a call.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Rows whose turn comes first.
    pub(super) rows: usize,
    /// Encodings to be expected whose turn comes first.
    pub(super) images: f64,
    /// Rows without images of their own are at work: the text stage will not run dry with these images.
    pub(super) other_rows: bool,
    /// Images are being encoded, if not before the call's own.
    pub(super) other_images: bool,
}

/// The text side by numbers.
struct TextModel {
    cost: TextCost,
    /// Tokens that fit one unit.
    unit_tokens: f64,
    /// Tokens of one row in one unit.
    row_tokens: f64,
    /// Units of one row.
    row_units: f64,
}

impl Estimates {
    fn text(&self, settings: &EngineSettings) -> Option<TextModel> {
        let cost = TextCost { fixed: self.unit_fixed?, per_token: self.unit_per_token? };
        let row_units = self.row_units?.max(1.0);
        let row_tokens = self.row_tokens?.max(1.0) / row_units;
        let in_time = (cost.budget(settings.unit_time) - cost.fixed) / cost.per_token.max(1e-9);
        let in_rows = row_tokens * settings.max_batch_rows as f64;
        let most = in_rows.min(settings.max_batch_tokens as f64).max(row_tokens);
        Some(TextModel {
            cost,
            unit_tokens: in_time.clamp(row_tokens, most),
            row_tokens,
            row_units,
        })
    }

    /// Encodings to be expected of so many images that have not been looked up yet.
    pub(super) fn encodings(&self, images: usize) -> f64 {
        self.image_misses.unwrap_or(1.0).clamp(LEAST_MISSES, 1.0) * images as f64
    }

    fn vision_seconds(&self, images: f64) -> f64 {
        self.image.unwrap_or(0.0) * images
    }

    /// All the time that the worker needs for `rows` and to encode `images`.
    pub(super) fn work(&self, rows: usize, images: f64, settings: &EngineSettings) -> Duration {
        let text = self.text(settings).map_or(0.0, |text| text.seconds(rows as f64));
        seconds(self.vision_seconds(images) + text)
    }

    /// How long a call waits behind `queue`: images come one after another, rows join each other as far as units have
    /// room. Where both stages are at work each goes on at its share of the worker, for as long as more work comes;
    /// only rows that belong to the images before end with them.
    pub(super) fn wait(&self, queue: &Queue, settings: &EngineSettings) -> Duration {
        let vision_share = f64::from(settings.vision_share_percent) / 100.0;
        let share = |shared: bool, share: f64| if shared { share } else { 1.0 };
        let vision = self.vision_seconds(queue.images) / share(queue.other_rows, vision_share);
        let rows = queue.rows as f64;
        let queued = self.text(settings).map_or(0.0, |text| text.queued_seconds(rows));
        let text = queued / share(queue.other_images, 1.0 - vision_share);
        let wait = seconds(vision + text);
        if queue.other_rows {
            wait
        } else {
            wait.min(self.work(queue.rows, queue.images, settings))
        }
    }

    /// The least time in which an idle server could do `rows` and `images`: every row needs a unit at least.
    /// The call's kind is not known, so the bound is that of the cheapest.
    pub(super) fn least_service(
        &self,
        rows: usize,
        images: f64,
        settings: &EngineSettings,
    ) -> Duration {
        let one_pass = |text: TextModel| TextModel { row_units: 1.0, ..text };
        let text = self.text(settings).map_or(0.0, |text| one_pass(text).seconds(rows as f64));
        seconds(self.vision_seconds(images) + text)
    }
}

impl TextModel {
    /// Units in which each row has had one turn, at least one if there is any row.
    fn units(&self, rows: f64) -> f64 {
        (rows * self.row_tokens / self.unit_tokens).max(if rows > 0.0 { 1.0 } else { 0.0 })
    }

    fn seconds(&self, rows: f64) -> f64 {
        let units = self.units(rows);
        self.row_units * (units * self.cost.fixed + rows * self.row_tokens * self.cost.per_token)
    }

    /// Time until rows that do not fit a unit have found room.
    fn queued_seconds(&self, rows: f64) -> f64 {
        let over = rows - self.unit_tokens / self.row_tokens;
        if over > 0.0 { self.seconds(over) } else { 0.0 }
    }
}

/// Durations are bounded so that no estimate, however wrong, overflows.
fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, 1e6))
}
