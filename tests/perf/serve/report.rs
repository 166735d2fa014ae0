//! What was measured: a line for people, an object for scripts.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::arguments::{Arguments, Case};
use crate::load::Measured;
use crate::pictures::Pictures;

/// The whole document.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    width: u32,
    height: u32,
    mean_file_bytes: usize,
    tokens: usize,
    models: Vec<String>,
    dtype: Option<String>,
    threads: Option<usize>,
    settings: Vec<String>,
    url: Option<String>,
    pub(crate) rows: Vec<Row>,
}

/// One endpoint, one kind of pictures, one number of clients.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    endpoint: &'static str,
    images: &'static str,
    clients: usize,
    seconds: f64,
    /// Requests that were answered with 200.
    requests: usize,
    requests_per_second: f64,
    /// Of those; null where there are none.
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    /// By status, or by what happened instead of an answer.
    errors: BTreeMap<String, usize>,
    #[serde(flatten)]
    costs: Costs,
}

/// What it took; null where the system does not say, or the server is not ours.
#[derive(Debug, Serialize)]
pub(crate) struct Costs {
    pub(crate) load_generator_cpu_seconds: Option<f64>,
    pub(crate) server_cpu_seconds: Option<f64>,
    /// Since the server was started.
    pub(crate) server_peak_bytes: Option<u64>,
}

impl Report {
    pub(crate) fn new(pictures: &Pictures, arguments: &Arguments) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            width: arguments.width,
            height: arguments.height,
            mean_file_bytes: pictures.mean_bytes(),
            tokens: arguments.tokens,
            models: arguments.models.clone(),
            dtype: arguments.dtype.clone(),
            threads: arguments.threads,
            settings: arguments.settings.clone(),
            url: arguments.url.clone(),
            rows: Vec::new(),
        }
    }

    /// Writes the JSON where it is wanted.
    pub(crate) fn write(&self, file: Option<&str>) -> anyhow::Result<()> {
        let Some(file) = file else { return Ok(()) };
        let json = serde_json::to_string_pretty(self)? + "\n";
        if file == "-" {
            return Ok(std::io::stdout().write_all(json.as_bytes())?);
        }
        std::fs::write(file, json).with_context(|| format!("cannot write {file}"))
    }
}

impl Row {
    pub(crate) fn new(case: Case, measured: Measured, costs: Costs) -> Self {
        let Measured { elapsed, mut latencies, errors } = measured;
        latencies.sort_unstable();
        let percentile = |percent| Some(percentile(&latencies, percent)?.as_secs_f64() * 1e3);
        Self {
            endpoint: case.endpoint.name(),
            images: case.images.name(),
            clients: case.clients,
            seconds: elapsed.as_secs_f64(),
            requests: latencies.len(),
            requests_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
            p50_ms: percentile(50),
            p90_ms: percentile(90),
            p99_ms: percentile(99),
            max_ms: percentile(100),
            errors,
            costs,
        }
    }

    /// For the table; the first with the columns' names above it.
    pub(crate) fn line(&self, first: bool) -> String {
        let head = "endpoint    images    clients  requests     /s    p50 ms    p90 ms    p99 ms    max ms  \
                    load CPU s  server CPU s  peak MB  errors\n";
        let milliseconds = |value: Option<f64>| number(value, 1);
        let peak = self.costs.server_peak_bytes.map(|bytes| bytes as f64 / 1e6);
        let errors: Vec<String> =
            self.errors.iter().map(|(what, count)| format!("{count} x {what}")).collect();
        let line = format!(
            "{:<10}  {:<8}  {:>7}  {:>8}  {:>5.2}  {:>8}  {:>8}  {:>8}  {:>8}  {:>10}  {:>12}  {:>7}  {}",
            self.endpoint,
            self.images,
            self.clients,
            self.requests,
            self.requests_per_second,
            milliseconds(self.p50_ms),
            milliseconds(self.p90_ms),
            milliseconds(self.p99_ms),
            milliseconds(self.max_ms),
            number(self.costs.load_generator_cpu_seconds, 2),
            number(self.costs.server_cpu_seconds, 2),
            number(peak, 0),
            errors.join(", "),
        );
        let head = if first { head } else { "" };
        format!("{head}{}\n", line.trim_end())
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// The smallest latency that so many percent do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}
