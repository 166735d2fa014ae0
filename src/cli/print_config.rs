//! `config`: prints the effective settings as a file that means the same, secrets hidden.

use super::error::CommandError;
use crate::config::Config;

pub(super) fn run(config: &Config) -> Result<(), CommandError> {
    super::print(&config.to_toml())
}
