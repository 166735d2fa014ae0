//! The command `bench`: measures the models without HTTP. It runs each kind of work at each batch size, for every
//! requested number format and instruction set. It prints a table for users, or JSON for the scripts in `tests/perf`.
//! The measurements themselves are in `app::bench`.
//!
//! - this file: decides what is measured, and in which order;
//! - `args`: the flags; `report`: the JSON; `table`: the table.

mod args;
mod report;
mod table;

use std::num::NonZeroUsize;

use indicatif::{ProgressBar, ProgressStyle};

use super::error::CommandError;
use crate::app::bench::{ArithmeticBound, Bench, Checkpoints, Machine, read_bytes_per_second};
use crate::config::{self, Config, ConfigError, Environment, Flags};
use crate::hub::ModelSource;
use crate::telemetry::logging::{self, LoggingSettings};
pub(super) use args::BenchArguments;
use report::{Report, ResultReport};

/// The value of `--json` that means standard output.
const STANDARD_OUTPUT: &str = "-";

pub(super) fn run(
    arguments: &BenchArguments,
    flags: &Flags,
    environment: &Environment,
) -> Result<(), CommandError> {
    let configs = configs(arguments, flags, environment)?;
    let first = &configs[0];
    logging::init(&quiet(&first.log))
        .map_err(|error| CommandError::failed("cannot start logging", error))?;
    let checkpoints = super::runtime()?
        .block_on(Checkpoints::locate(first))
        .map_err(|error| CommandError::failed("cannot measure", error))?;
    let report = measure(arguments, &configs, &checkpoints)
        .map_err(|error| CommandError::failed("cannot measure", error))?;
    write(arguments, &report)
}

/// Builds one configuration per requested number format and instruction set. All are checked before anything is loaded.
fn configs(
    arguments: &BenchArguments,
    flags: &Flags,
    environment: &Environment,
) -> Result<Vec<Config>, CommandError> {
    let or_flag = |several: &[String], one: &Option<String>| match several {
        [] => vec![one.clone()],
        several => several.iter().cloned().map(Some).collect(),
    };
    let mut configs = Vec::new();
    for dtype in or_flag(&arguments.dtypes, &flags.dtype) {
        for cpu_isa in or_flag(&arguments.levels, &flags.cpu_isa) {
            let flags = Flags { dtype: dtype.clone(), cpu_isa, ..flags.clone() };
            let loaded = config::load(&flags, environment);
            let mut config = loaded.map_err(|error| named_as_given(error, arguments))?;
            if config.models.is_empty() {
                config.models = ModelSource::demo();
            }
            // If this binary was built without the demo models, the list is still empty.
            if config.models.is_empty() {
                return Err(ConfigError::NoModel.into());
            }
            configs.push(config);
        }
    }
    Ok(configs)
}

/// Names the flag that was given as the origin of a wrong value: `--dtypes` and `--levels` stand for several values of
/// `--dtype` and `--cpu-isa`.
fn named_as_given(error: ConfigError, arguments: &BenchArguments) -> ConfigError {
    let ConfigError::Invalid { setting, value, origin, accepted } = error else { return error };
    let origin = match setting.as_str() {
        "compute.dtype" if !arguments.dtypes.is_empty() => "from --dtypes".to_owned(),
        "compute.cpu_isa" if !arguments.levels.is_empty() => "from --levels".to_owned(),
        _ => origin,
    };
    ConfigError::Invalid { setting, value, origin, accepted }
}

/// Raises the default log level to `warn`, because `info` lines would break the progress bar and repeat the table.
fn quiet(settings: &LoggingSettings) -> LoggingSettings {
    let default = settings.filter == LoggingSettings::default().filter;
    let filter = if default { "warn".to_owned() } else { settings.filter.clone() };
    LoggingSettings { filter, ..settings.clone() }
}

fn measure(
    arguments: &BenchArguments,
    configs: &[Config],
    checkpoints: &Checkpoints,
) -> anyhow::Result<Report> {
    let bar = bar();
    bar.set_message("limits of this machine");
    let settings = configs[0].compute;
    let machine = Machine::detect();
    let threads = settings.threads.map_or(machine.cores, NonZeroUsize::get);
    let mut report = Report::new(machine, threads, read_bytes_per_second(settings)?);
    // Measure the limits before any model is loaded, because the measurement needs large buffers.
    for config in configs {
        let Some(limits) = ArithmeticBound::measure(config.compute)? else { continue };
        report.add_limits(&limits);
    }
    let mut measured = Vec::new();
    for config in configs {
        bar.set_message("loading");
        let bench = Bench::load(config.compute, checkpoints)?;
        // If the kernels are not used (candle or GPU), all instruction sets give the same setup, so measure it only
        // once.
        if !measured.contains(bench.setup()) {
            measured.push(bench.setup().clone());
            measure_all(arguments, bench, &bar, &mut report.results)?;
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Measures every kind of work at every batch size with one set of loaded models.
fn measure_all(
    arguments: &BenchArguments,
    mut bench: Bench,
    bar: &ProgressBar,
    results: &mut Vec<ResultReport>,
) -> anyhow::Result<()> {
    let (plan, setup) = (arguments.plan(), bench.setup().clone());
    let cases = bench.cases(&arguments.tasks)?;
    bar.set_position(0);
    bar.set_length((cases.len() * arguments.batches.len() * plan.all_runs()) as u64);
    for case in &cases {
        let (info, work) = case;
        for &batch in &arguments.batches {
            bar.set_message(format!("{work} x{batch}, {} {}", setup.dtype, setup.level));
            let measurement = bench.measure(case, batch, &plan, &mut || bar.inc(1))?;
            let batch = batch.get();
            results.push(ResultReport::new(&info.name, (*work, batch), &plan, &setup, measurement));
        }
    }
    Ok(())
}

/// Creates a progress bar on standard error, hidden if standard error is not a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:<36} [{bar:30}] {pos}/{len} {eta}")
        .expect("the template is a constant that the tests render")
        .progress_chars("=> ");
    ProgressBar::new(1).with_style(style)
}

fn write(arguments: &BenchArguments, report: &Report) -> Result<(), CommandError> {
    let Some(file) = &arguments.json else { return super::print(&table::table(report)) };
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| CommandError::failed("cannot serialise the results", error))?
        + "\n";
    if file == STANDARD_OUTPUT {
        return super::print(&json);
    }
    std::fs::write(file, json)
        .map_err(|error| CommandError::failed(format!("cannot write {file}"), error))?;
    super::print(&table::table(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_the_bar_is_valid() {
        let bar = bar();
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        bar.set_message("vision x8, bf16 amx");
        bar.inc(1);
        bar.finish_and_clear();
    }

    #[test]
    fn a_filter_that_somebody_chose_stays() {
        assert_eq!(quiet(&LoggingSettings::default()).filter, "warn");
        let chosen = LoggingSettings { filter: "debug".to_owned(), ..LoggingSettings::default() };
        assert_eq!(quiet(&chosen), chosen);
    }
}
