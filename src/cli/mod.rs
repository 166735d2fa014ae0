//! The command line: parses the arguments, runs one command and returns its exit code. `main` calls [`run`]. There is
//! one file per command; commands delegate the work to `app`, `config`, `hub` and `http`.
//!
//! Exit codes:
//!
//! - 0: success;
//! - 1: failure;
//! - 2: usage error;
//! - 3: some files failed, and the others are done;
//! - 70: a model cannot run inference, or a worker ended unexpectedly;
//! - 78: the configuration or the files of a checkpoint are bad.
//!
//! Results go to standard output; logs and progress go to standard error.

mod annotate;
mod args;
mod bench;
mod convert;
mod doctor;
mod download;
mod error;
mod healthcheck;
mod manual;
mod mcp;
mod mock;
mod openapi;
mod print_config;
mod printable;
mod serve;
mod signals;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{self, Config, Environment};
use crate::telemetry::logging::{self, LoggingSettings};
use args::{Arguments, Command};
use error::CommandError;

/// Runs the command given by `arguments` (program name first) with this environment.
pub fn run(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap reports help and version as errors too. If they cannot be printed, nobody reads them, so ignore that
            // failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(&arguments, environment) {
        Ok(()) => {
            logging::flush();
            ExitCode::SUCCESS
        }
        // Whoever has read enough of the output, such as `head`, needs no message.
        Err(error @ CommandError::ReaderGone) => error.exit_code(),
        Err(error) => {
            let text = error.with_causes();
            let lines: Vec<_> = text.lines().map(printable::printable).collect();
            logging::write_error(&format!("blip-server: {}", lines.join("\n")));
            error.exit_code()
        }
    }
}

fn execute(arguments: &Arguments, environment: &Environment) -> Result<(), CommandError> {
    let load_with = |change: fn(&mut Config)| -> Result<Config, CommandError> {
        let mut config = config::load(&arguments.flags(), environment)?;
        change(&mut config);
        logging::init(&config.log)
            .map_err(|error| CommandError::failed("cannot start logging", error))?;
        end_if_this_thread_panics();
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    };
    let load = || load_with(|_| {});
    match &arguments.command {
        None | Some(Command::Serve(_)) => serve::run(load()?),
        Some(Command::Download { sources, .. }) => download::run(sources, &load()?),
        Some(Command::Convert { directory }) => convert::run(directory),
        Some(Command::Verify { .. }) => verify::run(load()?),
        Some(Command::Bench { bench, .. }) => bench::run(bench, &arguments.flags(), environment),
        Some(Command::Openapi { json, strict }) => openapi::run(*json, *strict),
        Some(Command::Healthcheck { url, .. }) => healthcheck::run(url.as_deref(), load),
        Some(Command::Mock { mock, .. }) => mock::run(mock, load()?),
        Some(Command::Caption { caption, generation, files, models, .. }) => {
            let request = annotate::Request::caption(caption, generation);
            annotate::run(request, files, models.names(), load_with(quietly)?)
        }
        Some(Command::Ask { ask, generation, files, models, .. }) => {
            let request = annotate::Request::ask(ask, generation);
            annotate::run(request, files, models.names(), load_with(quietly)?)
        }
        Some(Command::Match { texts, files, models, .. }) => {
            let request = annotate::Request::compare(texts);
            annotate::run(request, files, models.names(), load_with(quietly)?)
        }
        Some(Command::Embed { embed, files, models, .. }) => {
            let request = annotate::Request::embed(embed);
            annotate::run(request, files, models.names(), load_with(quietly)?)
        }
        Some(Command::Classify { classify, files, models, .. }) => {
            let request = annotate::Request::classify(classify);
            annotate::run(request, files, models.names(), load_with(quietly)?)
        }
        Some(Command::Mcp { mcp, .. }) => mcp::run(mcp, load_with(quietly)?),
        Some(Command::Doctor { json, .. }) => {
            doctor::run(*json, || load_with(doctor::silently), environment)
        }
        Some(Command::Config(_)) => print_config::run(&load()?),
        Some(Command::Completions { shell }) => manual::completions(*shell),
        Some(Command::Man { directory }) => manual::write_pages(directory),
    }
}

/// Logs only warnings unless the settings say otherwise, for commands whose standard error a person or a program reads. They
/// make no requests that the access log should contain.
fn quietly(config: &mut Config) {
    if config.log.filter == LoggingSettings::default().filter {
        "warn,access=off".clone_into(&mut config.log.filter);
    }
}

/// Makes a panic of the calling thread, the main thread, end the process with a message and exit code 1.
///
/// Tokio panics where the system refuses it a thread or a socket. Unwinding the main thread would then drop the runtime,
/// which waits for threads that never end.
fn end_if_this_thread_panics() {
    let (main, log) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        log(info);
        if std::thread::current().id() == main {
            let reason = logging::panic_message(info);
            logging::write_error(&format!("blip-server: cannot continue: {reason}"));
            std::process::exit(1);
        }
    }));
}

/// Creates the async runtime for a command that uses the network.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed("cannot start the async runtime", error))
}

/// Writes a command's result to standard output and flushes it. That its reader has read enough, as `head` does, is no error:
/// the exit code is then that of the rest of the command.
fn print(text: &str) -> Result<(), CommandError> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|error| CommandError::failed("cannot write to standard output", error))
        }
    }
}
