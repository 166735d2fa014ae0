//! What became of every case, by kind of fault.

use std::collections::BTreeMap;

/// Numbers of cases by kind and outcome.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<String, BTreeMap<String, usize>>,
    wrong: Vec<String>,
}

impl Tally {
    pub(super) fn add(&mut self, kind: &str, outcome: &str) {
        *self.counts.entry(kind.to_owned()).or_default().entry(outcome.to_owned()).or_default() +=
            1;
    }

    /// A case with a result that must not be.
    pub(super) fn add_wrong(&mut self, kind: &str, case: &str, why: &str) {
        eprintln!("WRONG {case}: {why}");
        self.add(kind, "WRONG");
        self.wrong.push(format!("{case}: {why}"));
    }

    fn cases(&self) -> usize {
        self.counts.values().flat_map(BTreeMap::values).sum()
    }

    /// Prints the numbers.
    ///
    /// # Panics
    /// If any result was wrong.
    pub(super) fn finish(self, name: &str) {
        eprintln!("{name}: {} cases", self.cases());
        for (kind, outcomes) in &self.counts {
            let shown: Vec<String> =
                outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            eprintln!("  {kind:<28} {}", shown.join(", "));
        }
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}
