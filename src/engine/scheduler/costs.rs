//! Cost model of the work, learnt from measured times. For each output of a tower, it holds the seconds per image. For each text
//! lane, it holds the seconds per unit (a fixed part) and the seconds per token. All values are exponential moving
//! averages.

use std::collections::HashMap;
use std::time::Duration;

use super::Lane;
use crate::task::VisionOutput;

/// Weight of the newest measurement in the moving average. With 0.1 about the last ten measurements count.
const NEWEST: f64 = 0.1;

/// Returns the weight of the newest of `count` measurements. The average is a plain mean at first, so that a slow cold
/// start soon loses its weight.
fn newest(count: u32) -> f64 {
    NEWEST.max(1.0 / f64::from(count))
}

/// Fraction of a text unit's time that is assumed to be fixed, until units of two different sizes have been measured. A
/// text unit spends most of its time reading weights. Assuming three quarters lets the next unit be about three times
/// as large, so that different sizes do get measured.
const FIXED_PART_AT_FIRST: f64 = 0.75;

/// The slope of a [`FittedLine`] (the seconds per token) is computed only if the variance of the unit sizes exceeds
/// this fraction of their squared mean, which means that the sizes spread by about a third of their mean. Units of
/// nearly equal size differ in time only by chance. A slope computed from that noise could claim that reading the
/// weights costs nothing and that each token costs a tenth of a second.
const ENOUGH_VARIANCE: f64 = 0.1;

/// Lower bound on the slope, as a fraction of mean time over mean size. A smaller slope is noise: work is never free.
const LEAST_SLOPE: f64 = 0.01;

/// Cost of a text unit. The unit takes `fixed + per_token * work` seconds, with `work` in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TextCost {
    pub(crate) fixed: f64,
    pub(crate) per_token: f64,
}

impl TextCost {
    pub(crate) fn seconds(self, work: f64) -> f64 {
        self.fixed + self.per_token * work
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
}

impl FittedLine {
    fn new(x: f64, y: f64) -> Self {
        Self { count: 1, x, y, xx: x * x, xy: x * y, slope: None }
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

    fn cost(&self) -> TextCost {
        let proportional = self.y / self.x;
        let slope = self.slope.unwrap_or((1.0 - FIXED_PART_AT_FIRST) * proportional);
        let per_token = slope.clamp(LEAST_SLOPE * proportional, proportional);
        TextCost { fixed: (self.y - per_token * self.x).max(0.0), per_token }
    }
}

/// Exponential moving average of measurements.
#[derive(Debug, Clone, Copy, Default)]
struct MovingAverage {
    count: u32,
    value: f64,
}

impl MovingAverage {
    fn add(&mut self, new: f64) {
        self.count = self.count.saturating_add(1);
        self.value += newest(self.count) * (new - self.value);
    }
}

/// All measured costs: for each output of a tower, for each lane, and over all of them.
#[derive(Debug, Default)]
pub(super) struct Costs {
    images: HashMap<VisionOutput, MovingAverage>,
    any_image: Option<MovingAverage>,
    lanes: HashMap<Lane, FittedLine>,
    any_text: Option<FittedLine>,
}

impl Costs {
    /// Learns the cost of an image from a vision batch.
    pub(super) fn record_images(&mut self, output: VisionOutput, images: usize, elapsed: Duration) {
        let each = elapsed.as_secs_f64() / images.max(1) as f64;
        self.images.entry(output).or_default().add(each);
        self.any_image.get_or_insert_default().add(each);
    }

    /// Learns the cost of text units from a unit of `work` tokens that took `elapsed`.
    pub(super) fn record_text(&mut self, lane: Lane, work: f64, elapsed: Duration) {
        let (work, seconds) = (work.max(1.0), elapsed.as_secs_f64());
        self.lanes
            .entry(lane)
            .and_modify(|line| line.add(work, seconds))
            .or_insert_with(|| FittedLine::new(work, seconds));
        match &mut self.any_text {
            Some(line) => line.add(work, seconds),
            None => self.any_text = Some(FittedLine::new(work, seconds)),
        }
    }

    /// Returns the measured seconds per image of this output.
    pub(super) fn image(&self, output: VisionOutput) -> Option<f64> {
        self.images.get(&output).map(|mean| mean.value)
    }

    /// Returns the measured cost of this lane's units.
    pub(super) fn text(&self, lane: Lane) -> Option<TextCost> {
        self.lanes.get(&lane).map(FittedLine::cost)
    }

    /// Returns the measured seconds per image, over all towers.
    pub(super) fn any_image(&self) -> Option<f64> {
        self.any_image.map(|mean| mean.value)
    }

    /// Returns the measured cost of text units, over all lanes.
    pub(super) fn any_text(&self) -> Option<TextCost> {
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
        assert!((cost.per_token - 0.002).abs() < 1e-5, "{cost:?}");
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
        assert!((costs.image(FIRST).unwrap() - 1.9).abs() < 1e-9);
    }

    #[test]
    fn images_are_measured_per_tower() {
        let mut costs = Costs::default();
        costs.record_images(FIRST, 4, Duration::from_secs(4));
        costs.record_images(SECOND, 1, Duration::from_secs(3));
        assert_eq!(costs.image(FIRST), Some(1.0));
        assert_eq!(costs.image(SECOND), Some(3.0));
        assert_eq!(costs.any_image(), Some(2.0));
    }
}
