//! The checks at the end of a schedule, when all its threads have ended.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::tally::Event;
use super::world::{ExploredWorld, Over};
use crate::engine::testing::fake::{FakeMark, FakeUnit};
use crate::engine::{EngineError, Phase};
use crate::fairness::ClientId;

impl ExploredWorld {
    pub(super) fn judge(&self) {
        self.nothing_is_left();
        self.outcomes_add_up();
        // When a backend call fails, the worker runs each half of its items again. An item may then run in more units
        // than the check below allows.
        if !self.is_faulty {
            self.nothing_ran_for_tasks_that_were_over();
        }
        assert_eq!(self.handle.phase(), Phase::Down);
        let refused = self.handle.admit(ClientId::default(), 0, self.clock.now()).map(|_| ());
        assert_eq!(refused, Err(EngineError::WorkerDown));
    }

    fn nothing_is_left(&self) {
        let depth = |stage| self.metrics.queue_depth.with_label_values(&[stage]).get();
        let gauges = [
            self.metrics.queue_rows.get(),
            self.metrics.queue_bytes.get(),
            self.metrics.worker_up.with_label_values(&["0"]).get(),
        ];
        assert_eq!(gauges, [0; 3], "rows, bytes and the worker");
        assert_eq!(self.handle.rows(), 0);
        assert_eq!(self.control.open_groups(), 0);
        if !self.may_die() {
            assert_eq!([depth("vision"), depth("text")], [0; 2], "images and rows that wait");
        }
    }

    fn outcomes_add_up(&self) {
        let stats = self.handle.stats();
        let sent = self.sent.load(Ordering::SeqCst);
        let outcomes =
            stats.answered + stats.failed + stats.cancelled + stats.expired + stats.shut_down;
        assert!(stats.submitted <= sent, "{stats:?}, {sent} sent");
        if self.may_die() {
            assert!(outcomes <= stats.submitted, "{stats:?}");
            if self.tally.of(Event::WorkerDown) > 0 {
                self.count(Event::WorkerDied);
            }
            return;
        }
        assert_eq!(outcomes, stats.submitted, "{stats:?}");
        let was_cut = [&self.begun.abort, &self.begun.stop];
        if !was_cut.iter().any(|flag| flag.load(Ordering::SeqCst)) {
            assert_eq!(stats.submitted, sent, "every task has reached the worker");
        }
        // Clients that waited saw exactly the outcomes that were counted. The outcomes for clients that disconnected
        // are unknown.
        let left = self.tally.of(Event::Left);
        let seen = [
            (stats.answered, Event::Answered),
            (stats.failed, Event::Failed),
            (stats.expired, Event::Expired),
        ];
        for (counted, event) in seen {
            let seen = self.tally.of(event);
            assert!(
                (seen..=seen + left).contains(&counted),
                "{event:?} {seen}, {left} left: {stats:?}"
            );
        }
        assert!(stats.shut_down <= self.tally.of(Event::ShutDown) + left, "{stats:?}");
        assert!(stats.cancelled <= left, "{stats:?}, {left} left");
    }

    fn nothing_ran_for_tasks_that_were_over(&self) {
        let log = self.control.log();
        let begun = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(log.len(), begun.len());
        let aborted_at = self.aborted_at.load(Ordering::SeqCst).min(log.len());
        assert!(log.len() - aborted_at <= 1, "{} units after the abort", log.len() - aborted_at);
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        for Over { mark, deadline, at, more } in over.iter() {
            let Some(mark) = mark else { continue };
            let later = log[*at..].iter().filter(|unit| holds(unit, *mark)).count();
            assert!(later <= *more, "{later} units of {mark:?} after its task was over");
            let late = log.iter().zip(begun.iter());
            let late = late.filter(|(unit, began)| holds(unit, *mark) && *began >= deadline);
            assert!(late.count() <= 1, "units of {mark:?} after its deadline");
        }
    }
}

fn holds(unit: &FakeUnit, mark: FakeMark) -> bool {
    unit.items.iter().any(|marks| marks.contains(&mark))
}
