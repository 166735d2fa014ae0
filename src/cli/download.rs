//! The command `download SRC...`: fills the hub cache with checkpoints, so that a server can start without a network.

use super::error::CommandError;
use crate::config::Config;
use crate::hub::{DownloadProgress, ModelSource, locate};

pub(super) fn run(sources: &[String], config: &Config) -> Result<(), CommandError> {
    // Parse all arguments before the first byte is downloaded.
    let sources: Vec<ModelSource> =
        sources.iter().map(|source| source.parse()).collect::<Result<_, _>>()?;
    let progress = DownloadProgress::detect();
    super::runtime()?.block_on(async {
        for model in &sources {
            let files = locate(&model.source, &config.hub, &progress).await?;
            super::print(&format!("{}: {}\n", model.source, files.directory.display()))?;
        }
        Ok(())
    })
}
