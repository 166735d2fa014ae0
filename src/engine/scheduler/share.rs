//! Divides the worker's time between vision and text. While both have work, the measured time is divided between them
//! in proportion to their shares.

use std::time::Duration;

use super::Stage;
use crate::fairness::Deficit;

/// The time that each stage has used.
#[derive(Debug)]
pub(super) struct Share(Deficit);

impl Share {
    /// Creates the shares. `vision_percent` is clamped to 1..=99.
    pub(super) fn new(vision_percent: u8) -> Self {
        Self(Deficit::new(f64::from(vision_percent.clamp(1, 99)) / 100.0))
    }

    /// Returns the stage that runs next, out of those that are ready (`[vision, text]`).
    pub(super) fn choose(&mut self, ready: [bool; 2]) -> Option<Stage> {
        let stage = self.0.choose(ready)?;
        Some(if stage == Stage::Vision as usize { Stage::Vision } else { Stage::Text })
    }

    /// Charges a unit's time to its stage.
    pub(super) fn charge(&mut self, stage: Stage, elapsed: Duration) {
        self.0.charge(stage as usize, elapsed.as_secs_f64());
    }
}
