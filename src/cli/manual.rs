//! The commands `completions SHELL` and `man DIR`: completion scripts and manual pages, generated from `args`.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Arguments;
use super::error::CommandError;

const NAME: &str = "blip-server";

/// Prints the completion script for `shell` to standard output.
pub(super) fn completions(shell: Shell) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut script);
    super::print(&String::from_utf8_lossy(&script))
}

/// Writes `blip-server.1` and one page per command to `directory`, which is created if it does not exist, and prints the
/// paths.
pub(super) fn write_pages(directory: &Path) -> Result<(), CommandError> {
    let failed = |error| {
        let directory = directory.display();
        CommandError::failed(format!("cannot write manual pages to {directory}"), error)
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(failed)?;
    let commands = Arguments::command();
    let mut names = vec![NAME.to_owned()];
    names
        .extend(commands.get_subcommands().map(|command| format!("{NAME}-{}", command.get_name())));
    let paths = names.iter().map(|name| directory.join(format!("{name}.1")));
    let lines: Vec<String> = paths.map(|path| path.display().to_string() + "\n").collect();
    super::print(&lines.concat())
}
