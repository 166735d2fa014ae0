//! Metrics of the process itself (`process_*`), read from Linux's `/proc` at each scrape.
//!
//! Names, help texts and units are those of the `process` feature of the prometheus crate. That feature would add four
//! dependencies (procfs and what procfs needs) to read these seven numbers. A metric that cannot be read keeps its last
//! value.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, IntGauge};

/// Clock ticks per second in `/proc/PID/stat`. The value is part of the Linux ABI on x86-64 and aarch64 and does not
/// depend on the kernel's configuration.
const TICKS_PER_SECOND: i64 = 100;
/// Fields of `/proc/PID/stat`, numbered as in proc(5).
const USER_TICKS: usize = 14;
const SYSTEM_TICKS: usize = 15;
const START_TICKS: usize = 22;

/// Collector of the seven metrics. It keeps the values of the last scrape.
pub(super) struct ProcessCollector {
    cpu_seconds: Counter,
    open_files: IntGauge,
    max_files: IntGauge,
    virtual_bytes: IntGauge,
    resident_bytes: IntGauge,
    start_seconds: IntGauge,
    threads: IntGauge,
}

impl ProcessCollector {
    /// # Errors
    /// When a metric's declaration is not valid for Prometheus.
    pub(super) fn try_new() -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        Ok(Self {
            cpu_seconds: Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            open_files: gauge("process_open_fds", "Number of open file descriptors.")?,
            max_files: gauge("process_max_fds", "Maximum number of open file descriptors.")?,
            virtual_bytes: gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            resident_bytes: gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            )?,
            start_seconds: gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
            threads: gauge("process_threads", "Number of OS threads in the process.")?,
        })
    }

    fn metrics(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.open_files,
            &self.max_files,
            &self.virtual_bytes,
            &self.resident_bytes,
            &self.start_seconds,
            &self.threads,
        ]
    }

    fn read(&self) {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = text("/proc/self/stat");
        let status = text("/proc/self/status");

        if let Some(seconds) = cpu_seconds(&stat) {
            // A counter cannot be set, so add the difference between the value read and the counter. If two concurrent
            // scrapes both add the difference, later differences are 0 until the real value has caught up.
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        let open = fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
        set(&self.open_files, open.and_then(|count| i64::try_from(count).ok()));
        set(&self.max_files, number_after(&text("/proc/self/limits"), "Max open files"));
        set(&self.virtual_bytes, number_after(&status, "VmSize:").map(|kib| kib * 1024));
        set(&self.resident_bytes, number_after(&status, "VmRSS:").map(|kib| kib * 1024));
        set(&self.threads, number_after(&status, "Threads:"));
        // Only once: the kernel computes `btime` from the wall clock, so later values may differ by a second, and then the
        // process would look as if it had been started again.
        if self.start_seconds.get() == 0 {
            let boot = number_after(&text("/proc/stat"), "btime");
            let start = field(&stat, START_TICKS).zip(boot);
            set(&self.start_seconds, start.map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND));
        }
    }
}

/// Returns the resident memory of this process in bytes; `None` if `/proc` is not available.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    u64::try_from(number_after(&status, "VmRSS:")? * 1024).ok()
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.metrics().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.metrics().into_iter().flat_map(Collector::collect).collect()
    }
}

fn set(gauge: &IntGauge, value: Option<i64>) {
    if let Some(value) = value {
        gauge.set(value);
    }
}

/// Finds the line that starts with `name` and returns the number after `name`; `None` if a word such as "unlimited"
/// follows.
fn number_after(text: &str, name: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Returns one field of `/proc/PID/stat`. Splits the text after the last `)`, because field 2, the program's name in
/// parentheses, may itself contain spaces and parentheses.
fn field(stat: &str, number: usize) -> Option<i64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    let ticks = field(stat, USER_TICKS)? + field(stat, SYSTEM_TICKS)?;
    Some(ticks as f64 / TICKS_PER_SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a ) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 1250 275 7 8 20 0 9 0 98765 \
                        11 22 33";

    #[test]
    fn fields_are_counted_behind_a_program_name_with_parentheses() {
        assert_eq!(cpu_seconds(STAT), Some(15.25));
        assert_eq!(field(STAT, START_TICKS), Some(98765));
        assert_eq!(field("42 (cut) S 1", USER_TICKS), None);
    }

    #[test]
    fn a_limit_without_a_number_is_none() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024));
        assert_eq!(number_after("Max open files  unlimited  4096", "Max open files"), None);
        assert_eq!(number_after("VmRSS:\t   12 kB", "VmRSS:"), Some(12));
    }

    #[test]
    fn all_seven_metrics_of_this_process_have_plausible_values() {
        let collector = ProcessCollector::try_new().unwrap();
        assert_eq!(collector.collect().len(), 7);
        assert!(collector.open_files.get() >= 3);
        assert!(collector.max_files.get() >= collector.open_files.get());
        assert!(collector.resident_bytes.get() > 1024 * 1024);
        assert!(collector.virtual_bytes.get() >= collector.resident_bytes.get());
        assert!(collector.threads.get() >= 1);
        // Later than 2020-01-01, so the start time counts from 1970 and not from boot.
        assert!(collector.start_seconds.get() > 1_577_836_800);
    }
}
