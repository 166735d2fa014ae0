//! When a task was worked on ([`TaskRun`], for traces), and how long that took ([`TaskTiming`], for `server-timing`).

use std::time::{Duration, Instant};

/// How long an answered task waited and how long its work took, as measured by the worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskTiming {
    /// Time from submission to the start of the task's first work unit.
    pub queue: Duration,
    /// Total time of the vision batches that the task took part in; zero if its features were cached.
    pub vision: Duration,
    /// Total time of the text units that the task took part in.
    pub text: Duration,
}

/// When the worker worked on a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskRun {
    /// When the task was submitted.
    pub submitted: Instant,
    /// When its first work unit began; `None` if none has.
    pub started: Option<Instant>,
    /// The vision batches that it took part in; `None` if its features were cached.
    pub vision: Option<StageRun>,
    /// The text units that it took part in.
    pub text: Option<StageRun>,
}

/// The work units of one stage that a task took part in. Between them, the worker may have worked for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageRun {
    /// Begin of the first unit.
    pub began: Instant,
    /// End of the last unit.
    pub ended: Instant,
    /// Total time of the units.
    pub busy: Duration,
    /// Number of units.
    pub units: usize,
    /// Number of images or rows in the largest of the units, those of other tasks included.
    pub largest_batch: usize,
}

impl TaskRun {
    /// Creates the run of a task that waits.
    #[must_use]
    pub fn new(submitted: Instant) -> Self {
        Self { submitted, started: None, vision: None, text: None }
    }

    /// Records that a unit of the task begins, which ends the time in the queue if it is the first.
    pub fn start(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// Returns how long the task waited, and how long its work took.
    #[must_use]
    pub fn timing(&self) -> TaskTiming {
        let busy = |stage: Option<StageRun>| stage.map_or(Duration::ZERO, |stage| stage.busy);
        let waited = |started: Instant| started.saturating_duration_since(self.submitted);
        TaskTiming {
            queue: self.started.map_or(Duration::ZERO, waited),
            vision: busy(self.vision),
            text: busy(self.text),
        }
    }
}

impl StageRun {
    /// Adds a unit, with the number of its images or rows, to the run of a stage.
    pub fn add(run: &mut Option<Self>, (began, ended): (Instant, Instant), batch: usize) {
        let first = Self { began, ended, busy: Duration::ZERO, units: 0, largest_batch: 0 };
        let run = run.get_or_insert(first);
        run.ended = ended;
        run.busy = run.busy.saturating_add(ended.saturating_duration_since(began));
        run.units += 1;
        run.largest_batch = run.largest_batch.max(batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_the_time_of_its_units_and_not_that_between_them() {
        let submitted = Instant::now();
        let at = |ms| submitted + Duration::from_millis(ms);
        let mut run = TaskRun::new(submitted);
        assert_eq!(run.timing(), TaskTiming::default());
        run.start(at(10));
        StageRun::add(&mut run.vision, (at(10), at(15)), 4);
        run.start(at(20));
        StageRun::add(&mut run.text, (at(20), at(22)), 1);
        StageRun::add(&mut run.text, (at(30), at(31)), 3);
        let millis = Duration::from_millis;
        let timing = TaskTiming { queue: millis(10), vision: millis(5), text: millis(3) };
        assert_eq!(run.timing(), timing);
        let text = run.text.unwrap();
        assert_eq!((text.began, text.ended), (at(20), at(31)));
        assert_eq!((text.units, text.largest_batch), (2, 3));
    }
}
