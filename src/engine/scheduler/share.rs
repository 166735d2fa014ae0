//! Divides the worker's time between vision and text. While both have work, the measured time is divided between them
//! in proportion to their shares.

use std::time::Duration;

use super::Stage;

/// Deficit round robin over two stages. `used` is the time that each stage has used, divided by its share. The stage
/// with the smaller value runs next. A stage without work accumulates no credit.
#[derive(Debug)]
pub(super) struct Share {
    weights: [f64; 2],
    used: [f64; 2],
    active: [bool; 2],
}

impl Share {
    /// Creates the shares. `vision_percent` is clamped to 1..=99.
    pub(super) fn new(vision_percent: u8) -> Self {
        let vision = f64::from(vision_percent.clamp(1, 99)) / 100.0;
        Self { weights: [vision, 1.0 - vision], used: [0.0; 2], active: [false; 2] }
    }

    /// Returns the stage that runs next, out of those that are ready (`[vision, text]`).
    pub(super) fn choose(&mut self, ready: [bool; 2]) -> Option<Stage> {
        for (stage, other) in [(0, 1), (1, 0)] {
            if ready[stage] && !self.active[stage] {
                self.used[stage] = self.used[stage].max(self.used[other]);
            }
        }
        self.active = ready;
        let vision_next = match ready {
            [false, false] => return None,
            [true, true] => self.used[0] <= self.used[1],
            [vision, _] => vision,
        };
        Some(if vision_next { Stage::Vision } else { Stage::Text })
    }

    /// Charges a unit's time to its stage.
    pub(super) fn charge(&mut self, stage: Stage, elapsed: Duration) {
        let place = stage as usize;
        self.used[place] += elapsed.as_secs_f64() / self.weights[place];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(share: &mut Share, ready: [bool; 2], unit_ms: [u64; 2], units: usize) -> [u64; 2] {
        let mut spent = [0; 2];
        for _ in 0..units {
            let stage = share.choose(ready).unwrap();
            spent[stage as usize] += unit_ms[stage as usize];
            share.charge(stage, Duration::from_millis(unit_ms[stage as usize]));
        }
        spent
    }

    #[test]
    fn two_busy_stages_get_their_shares_of_time_not_of_units() {
        let [vision, text] = run(&mut Share::new(25), [true, true], [900, 30], 2000);
        let ratio = vision as f64 / (vision + text) as f64;
        assert!((ratio - 0.25).abs() < 0.03, "{ratio}");
    }

    #[test]
    fn an_idle_stage_saves_nothing_up() {
        let mut share = Share::new(50);
        run(&mut share, [false, true], [100, 100], 50);
        let [vision, text] = run(&mut share, [true, true], [100, 100], 10);
        assert_eq!((vision, text), (500, 500));
    }
}
