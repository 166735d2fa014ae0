//! Divides time between two classes of work in proportion to their shares (deficit round robin).

use super::BULK_PARTS;

/// Deficit round robin over two classes. `used` is the time that each class has used, divided by its share. The class
/// with the smaller value runs next. A class without work accumulates no credit.
#[derive(Debug)]
pub struct Deficit {
    weights: [f64; 2],
    used: [f64; 2],
    active: [bool; 2],
    /// The second class runs only once the first has used this much more.
    lead: f64,
}

impl Deficit {
    /// Creates the shares. `first` is the share of the first class, above 0 and below 1.
    #[must_use]
    pub fn new(first: f64) -> Self {
        Self { weights: [first, 1.0 - first], used: [0.0; 2], active: [false; 2], lead: 0.0 }
    }

    /// Creates the shares of interactive work, the first class, and of bulk work, of which a unit takes at most
    /// `unit_seconds`. Interactive work that comes after a pause runs for as long as bulk work may take for one unit, before
    /// bulk work gets its share.
    #[must_use]
    pub fn for_bulk_work(unit_seconds: f64) -> Self {
        let parts = f64::from(BULK_PARTS);
        Self { lead: parts * unit_seconds, ..Self::new(1.0 - 1.0 / parts) }
    }

    /// Returns the index of the class that runs next, out of those that are ready.
    pub fn choose(&mut self, ready: [bool; 2]) -> Option<usize> {
        for (class, other) in [(0, 1), (1, 0)] {
            if ready[class] && !self.active[class] {
                self.used[class] = self.used[class].max(self.used[other]);
            }
        }
        self.active = ready;
        match ready {
            [false, false] => None,
            [true, true] => Some(usize::from(self.used[0] > self.used[1] + self.lead)),
            [first, _] => Some(usize::from(!first)),
        }
    }

    /// Charges time, in seconds, to a class. Negative time corrects an earlier charge.
    pub fn charge(&mut self, class: usize, seconds: f64) {
        self.used[class] += seconds / self.weights[class];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(share: &mut Deficit, ready: [bool; 2], seconds: [f64; 2], units: usize) -> [f64; 2] {
        let mut spent = [0.0; 2];
        for _ in 0..units {
            let class = share.choose(ready).unwrap();
            spent[class] += seconds[class];
            share.charge(class, seconds[class]);
        }
        spent
    }

    #[test]
    fn two_busy_classes_get_their_shares_of_time_not_of_units() {
        let [first, second] = run(&mut Deficit::new(0.25), [true, true], [0.9, 0.03], 2000);
        let ratio = first / (first + second);
        assert!((ratio - 0.25).abs() < 0.03, "{ratio}");
    }

    #[test]
    fn an_idle_class_saves_nothing_up() {
        let mut share = Deficit::new(0.5);
        run(&mut share, [false, true], [0.1, 0.1], 50);
        let [first, second] = run(&mut share, [true, true], [0.1, 0.1], 10);
        assert!((first - 0.5).abs() < 1e-9 && (second - 0.5).abs() < 1e-9, "{first} {second}");
    }

    #[test]
    fn a_burst_of_interactive_work_is_not_interrupted_by_bulk_work() {
        let mut share = Deficit::for_bulk_work(0.1);
        run(&mut share, [false, true], [0.1, 0.1], 50);
        let [burst, bulk] = run(&mut share, [true, true], [0.01, 0.1], 180);
        assert!((burst - 1.8).abs() < 1e-9 && bulk == 0.0, "{burst} {bulk}");
        let [long, bulk] = run(&mut share, [true, true], [0.01, 0.1], 10_000);
        assert!((bulk / (long + bulk) - 0.05).abs() < 0.01, "{long} {bulk}");
    }

    #[test]
    fn nothing_ready_is_nothing_chosen() {
        assert_eq!(Deficit::new(0.5).choose([false, false]), None);
    }
}
