//! The JSON report of `bench`. The scripts of `tests/perf` read it, so names and meanings of fields must not change.

use serde::Serialize;

use crate::app::bench::{
    ArithmeticBound, Machine, Measurement, PartSeconds, PartWork, RunPlan, Setup, Work,
};

/// The whole JSON document of one `bench` run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    machine: MachineReport,
    limits: LimitsReport,
    pub(super) results: Vec<ResultReport>,
}

#[derive(Debug, Serialize)]
struct MachineReport {
    cpu: String,
    cores: usize,
    /// Number of threads that ran the models.
    threads: usize,
    levels: Vec<&'static str>,
}

/// Measured upper bounds of this machine, for all threads together.
#[derive(Debug, Serialize)]
struct LimitsReport {
    read_bytes_per_second: f64,
    /// The value for the setup that was measured first; null if the kernels are not used.
    operations_per_second: Option<f64>,
    by_format: Vec<FormatReport>,
}

#[derive(Debug, Serialize)]
struct FormatReport {
    level: &'static str,
    dtype: &'static str,
    operations_per_second: f64,
}

/// Result of one kind of work with one model at one batch size.
#[derive(Debug, Serialize)]
pub(super) struct ResultReport {
    pub(super) model: String,
    pub(super) task: &'static str,
    pub(super) dtype: &'static str,
    pub(super) level: String,
    pub(super) threads: usize,
    pub(super) batch: usize,
    /// Number of generated tokens per item; null for work that generates none.
    pub(super) tokens: Option<usize>,
    runs: usize,
    warm_up: usize,
    /// Time in seconds that each timed run took for the whole batch.
    seconds: Vec<f64>,
    pub(super) median_s: f64,
    pub(super) min_s: f64,
    pub(super) max_s: f64,
    /// Median divided by the batch size.
    pub(super) per_item_s: f64,
    /// Parts of the profiled run; empty without `--profile`.
    pub(super) parts: Vec<PartReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct PartReport {
    pub(super) part: String,
    pub(super) seconds: f64,
    pub(super) calls: usize,
    /// Present if the part is limited by arithmetic: the minimum number of multiplications and additions to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operations: Option<usize>,
    /// Present if the part is limited by reading weights: the minimum number of bytes to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<usize>,
}

impl Report {
    pub(super) fn new(machine: Machine, threads: usize, read_bytes_per_second: f64) -> Self {
        let Machine { cpu, cores, levels } = machine;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            machine: MachineReport { cpu, cores, threads, levels },
            limits: LimitsReport {
                read_bytes_per_second,
                operations_per_second: None,
                by_format: Vec::new(),
            },
            results: Vec::new(),
        }
    }

    /// Adds the limits of one setup, unless its number format and instruction set are already listed.
    pub(super) fn add_limits(&mut self, limits: &ArithmeticBound) {
        let ArithmeticBound { dtype, level, operations_per_second } = *limits;
        let known = &mut self.limits.by_format;
        if !known.iter().any(|known| (known.dtype, known.level) == (dtype, level)) {
            known.push(FormatReport { level, dtype, operations_per_second });
        }
        self.limits.operations_per_second.get_or_insert(operations_per_second);
    }

    /// Returns the first lines of the table, which describe the machine and its limits.
    pub(super) fn head(&self) -> String {
        let MachineReport { cpu, cores, threads, .. } = &self.machine;
        let reads = self.limits.read_bytes_per_second / 1e9;
        let limits = self.limits.by_format.iter().map(|limit| {
            let FormatReport { level, dtype, operations_per_second } = limit;
            let billions = operations_per_second / 1e9;
            format!("peak arithmetic: {billions:.0} GOP/s in {dtype} with {level}\n")
        });
        format!("{cpu}, {cores} cores, {threads} threads\n")
            + &format!("peak memory reads: {reads:.1} GB/s\n")
            + &limits.collect::<String>()
    }
}

impl ResultReport {
    pub(super) fn new(
        model: &str,
        (work, batch): (Work, usize),
        plan: &RunPlan,
        setup: &Setup,
        measurement: Measurement,
    ) -> Self {
        let seconds = measurement.seconds;
        let mut sorted = seconds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let median_s = median(&sorted);
        Self {
            model: model.to_owned(),
            task: work.name(),
            dtype: setup.dtype,
            level: setup.level.clone(),
            threads: setup.threads,
            batch,
            tokens: work.generates().then_some(plan.tokens.get()),
            runs: seconds.len(),
            warm_up: plan.warm_up,
            median_s,
            min_s: sorted.first().copied().unwrap_or_default(),
            max_s: sorted.last().copied().unwrap_or_default(),
            per_item_s: median_s / batch as f64,
            parts: measurement.parts.into_iter().map(PartReport::new).collect(),
            seconds,
        }
    }
}

impl PartReport {
    fn new(PartSeconds { part, seconds, calls, work }: PartSeconds) -> Self {
        let (operations, bytes) = match work {
            Some(PartWork::Operations(operations)) => (Some(operations), None),
            Some(PartWork::Bytes(bytes)) => (None, Some(bytes)),
            None => (None, None),
        };
        Self { part, seconds, calls, operations, bytes }
    }
}

/// Returns the median of sorted numbers: the middle number, or the mean of the two in the middle; 0 if there are none.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        _ if sorted.len() % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_two() {
        assert!((median(&[1.0, 2.0, 9.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[1.0, 2.0, 3.0, 9.0]) - 2.5).abs() < 1e-12);
    }
}
