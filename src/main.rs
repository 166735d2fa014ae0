//! The binary: passes arguments and environment to `cli` and returns its exit code. Contains no other logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    blip_server::cli::run(std::env::args_os(), &blip_server::config::process_environment())
}
