//! Arguments to a command and an exit code; no logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    blip_server::cli::run(std::env::args_os(), &blip_server::config::process_environment())
}
