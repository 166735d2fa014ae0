//! The command `config`: prints the effective settings as a TOML file that can be loaded again; secrets are hidden.

use super::error::CommandError;
use crate::config::Config;

pub(super) fn run(config: &Config) -> Result<(), CommandError> {
    super::print(&config.to_toml())
}
