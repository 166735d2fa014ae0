//! Cost model of the work, learnt from measured times. For each output of a tower and for each text lane, it holds the
//! seconds per unit (a fixed part) and the seconds per image or per token. All values are exponential moving averages.

use std::collections::HashMap;
use std::time::Duration;

use super::Lane;
use crate::engine::moving_average::MovingAverage;
use crate::task::VisionOutput;

/// Weight of the newest measurement in the moving average. With 0.1 about the last ten measurements count.
const NEWEST: f64 = 0.1;

/// Returns the weight of the newest of `count` measurements. The average is a plain mean at first, so that a slow cold
/// start soon loses its weight.
fn newest(count: u32) -> f64 {
    NEWEST.max(1.0 / f64::from(count))
}

/// Fraction of a vision unit's time that is assumed to be fixed, until units of two different sizes have been measured.
/// On a CPU nothing is fixed: eight images take eight times as long as one.
const FIXED_IMAGE_PART_AT_FIRST: f64 = 0.0;

/// Fraction of a text unit's time that is assumed to be fixed, until units of two different sizes have been measured. A
/// text unit spends most of its time reading weights. Assuming three quarters lets the next unit be about three times
/// as large, so that different sizes do get measured.
const FIXED_PART_AT_FIRST: f64 = 0.75;

/// The slope of a [`FittedLine`] (the seconds per image or per token) is computed only if the variance of the unit sizes exceeds
/// this fraction of their squared mean, which means that the sizes spread by about a third of their mean. Units of
/// nearly equal size differ in time only by chance. A slope computed from that noise could claim that reading the
/// weights costs nothing and that each token costs a tenth of a second.
const ENOUGH_VARIANCE: f64 = 0.1;

/// Lower bound on the slope, as a fraction of mean time over mean size. A smaller slope is noise: work is never free.
const LEAST_SLOPE: f64 = 0.01;

/// Cost of a unit. The unit takes `fixed + per_item * work` seconds, with `work` in images or in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct UnitCost {
    pub(crate) fixed: f64,
    pub(crate) per_item: f64,
}

impl UnitCost {
    pub(crate) fn seconds(self, work: f64) -> f64 {
        self.fixed + self.per_item * work
    }

    /// Returns the seconds that one unit may take: `unit_time`, but at least twice the fixed part. This lower bound
    /// lets the rows of a unit take as long as reading the weights. Without the bound, if reading the weights took
    /// longer than `unit_time`, a unit would hold only one row, and each row would pay for reading all weights.
    pub(crate) fn budget(self, unit_time: Duration) -> f64 {
        unit_time.as_secs_f64().max(2.0 * self.fixed)
    }
}

/// A line fitted to measurements by exponentially weighted least squares.
#[derive(Debug, Clone, Copy)]
struct FittedLine {
    count: u32,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    slope: Option<f64>,
    /// Fraction of the time that is assumed to be fixed while there is no slope.
    fixed_part_at_first: f64,
}

impl FittedLine {
    fn new(x: f64, y: f64, fixed_part_at_first: f64) -> Self {
        Self { count: 1, x, y, xx: x * x, xy: x * y, slope: None, fixed_part_at_first }
    }

    fn add(&mut self, x: f64, y: f64) {
        self.count = self.count.saturating_add(1);
        let weight = newest(self.count);
        let fade = |old: &mut f64, new: f64| *old += weight * (new - *old);
        fade(&mut self.x, x);
        fade(&mut self.y, y);
        fade(&mut self.xx, x * x);
        fade(&mut self.xy, x * y);
        let variance = self.xx - self.x * self.x;
        if variance > ENOUGH_VARIANCE * self.x * self.x {
            self.slope = Some((self.xy - self.x * self.y) / variance);
        }
    }

    fn cost(&self) -> UnitCost {
        let proportional = self.y / self.x;
        let slope = self.slope.unwrap_or((1.0 - self.fixed_part_at_first) * proportional);
        let per_item = slope.clamp(LEAST_SLOPE * proportional, proportional);
        UnitCost { fixed: (self.y - per_item * self.x).max(0.0), per_item }
    }
}

/// All measured costs: for each output of a tower, for each lane, and over all of them.
#[derive(Debug, Default)]
pub(super) struct Costs {
    images: HashMap<VisionOutput, FittedLine>,
    /// Number of vision units that were measured.
    vision_units: u32,
    /// Seconds per image.
    any_image: MovingAverage,
    lanes: HashMap<Lane, FittedLine>,
    any_text: Option<FittedLine>,
}

impl Costs {
    /// Learns the cost of vision units from a unit of `images` images that took `elapsed`.
    pub(super) fn record_images(&mut self, output: VisionOutput, images: usize, elapsed: Duration) {
        let (images, seconds) = (images.max(1) as f64, elapsed.as_secs_f64());
        self.images
            .entry(output)
            .and_modify(|line| line.add(images, seconds))
            .or_insert_with(|| FittedLine::new(images, seconds, FIXED_IMAGE_PART_AT_FIRST));
        self.vision_units = self.vision_units.saturating_add(1);
        self.any_image.add(seconds / images, newest(self.vision_units));
    }

    /// Learns the cost of text units from a unit of `work` tokens that took `elapsed`.
    pub(super) fn record_text(&mut self, lane: Lane, work: f64, elapsed: Duration) {
        let (work, seconds) = (work.max(1.0), elapsed.as_secs_f64());
        self.lanes
            .entry(lane)
            .and_modify(|line| line.add(work, seconds))
            .or_insert_with(|| FittedLine::new(work, seconds, FIXED_PART_AT_FIRST));
        match &mut self.any_text {
            Some(line) => line.add(work, seconds),
            None => self.any_text = Some(FittedLine::new(work, seconds, FIXED_PART_AT_FIRST)),
        }
    }

    /// Returns the measured cost of units that compute this output.
    pub(super) fn images(&self, output: VisionOutput) -> Option<UnitCost> {
        self.images.get(&output).map(FittedLine::cost)
    }

    /// Returns the measured cost of this lane's units.
    pub(super) fn text(&self, lane: Lane) -> Option<UnitCost> {
        self.lanes.get(&lane).map(FittedLine::cost)
    }

    /// Returns the measured seconds per image, over all towers.
    pub(super) fn any_image(&self) -> Option<f64> {
        self.any_image.value()
    }

    /// Returns the measured cost of text units, over all lanes.
    pub(super) fn any_text(&self) -> Option<UnitCost> {
        self.any_text.as_ref().map(FittedLine::cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ModelId, TowerId};

    const LANE: Lane = Lane::Step(ModelId(0));
    const FIRST: VisionOutput = VisionOutput { tower: TowerId(0), layer: None };
    const SECOND: VisionOutput = VisionOutput { tower: TowerId(1), layer: None };

    #[test]
    fn fixed_and_per_token_parts_are_told_apart() {
        let mut costs = Costs::default();
        for tokens in [1.0, 8.0, 3.0, 20.0, 2.0, 11.0].repeat(5) {
            costs.record_text(LANE, tokens, Duration::from_secs_f64(0.050 + 0.002 * tokens));
        }
        let cost = costs.text(LANE).unwrap();
        assert!((cost.fixed - 0.050).abs() < 1e-4, "{cost:?}");
        assert!((cost.per_item - 0.002).abs() < 1e-5, "{cost:?}");
    }

    #[test]
    fn one_size_alone_lets_the_next_unit_grow_threefold() {
        let mut costs = Costs::default();
        costs.record_text(LANE, 1.0, Duration::from_secs(1));
        let cost = costs.text(LANE).unwrap();
        let budget = cost.budget(Duration::from_millis(100));
        assert!(cost.seconds(3.0) <= budget && cost.seconds(4.0) > budget, "{cost:?}");
    }

    #[test]
    fn a_cold_start_is_soon_outvoted() {
        let mut costs = Costs::default();
        for seconds in [10, 1, 1, 1, 1, 1, 1, 1, 1, 1] {
            costs.record_images(FIRST, 1, Duration::from_secs(seconds));
        }
        assert!((costs.images(FIRST).unwrap().seconds(1.0) - 1.9).abs() < 1e-9);
    }

    /// The hardware bounds of a base-size model on an H100: 0.17 ms for one image, 1.35 ms for eight.
    #[test]
    fn the_fixed_part_of_images_is_found_where_there_is_one() {
        let mut costs = Costs::default();
        for images in [1, 8, 3, 20, 2, 11].repeat(5) {
            let seconds = 0.000_4 + 0.000_2 * images as f64;
            costs.record_images(FIRST, images, Duration::from_secs_f64(seconds));
        }
        let cost = costs.images(FIRST).unwrap();
        assert!((cost.fixed - 0.000_4).abs() < 1e-5, "{cost:?}");
        assert!((cost.per_item - 0.000_2).abs() < 1e-6, "{cost:?}");
    }

    #[test]
    fn images_are_measured_per_tower() {
        let mut costs = Costs::default();
        costs.record_images(FIRST, 4, Duration::from_secs(4));
        costs.record_images(SECOND, 1, Duration::from_secs(3));
        let one = |output| costs.images(output).map(|cost| cost.seconds(1.0));
        assert_eq!([one(FIRST), one(SECOND)], [Some(1.0), Some(3.0)]);
        assert_eq!(costs.any_image(), Some(2.0));
    }
}
