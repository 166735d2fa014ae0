//! The command `mcp`: gives a language model tools that look at pictures, over standard input and output.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::error::CommandError;
use super::signals;
use crate::app::App;
use crate::config::{Config, ConfigError};
use crate::hub::ModelSource;
use crate::mcp::{AllowedFolders, McpServer, serve_stdio};

/// What the tools may read.
#[derive(Debug, Args)]
pub(super) struct McpArguments {
    /// Folder whose pictures the tools may read by path, with the folders below it; repeatable [default: none]
    #[arg(long = "allow", value_name = "DIR")]
    allow: Vec<PathBuf>,
}

/// Serves one client until it closes standard input, or until a signal.
pub(super) fn run(arguments: &McpArguments, mut config: Config) -> Result<(), CommandError> {
    let folders = if arguments.allow.is_empty() {
        None
    } else {
        let opened = AllowedFolders::try_open(&arguments.allow, config.http.input.max_image_bytes);
        Some(Arc::new(opened.map_err(|error| CommandError::failed("--allow", error))?))
    };
    if config.models.is_empty() {
        config.models = ModelSource::demo();
    }
    // If this binary was built without the demo models, the list is still empty.
    if config.models.is_empty() {
        return Err(ConfigError::NoModel.into());
    }
    let runtime = super::runtime()?;
    let ended = runtime.block_on(async {
        let stop = signals::shutdown()
            .map_err(|error| CommandError::failed("cannot listen for signals", error))?;
        let local = tokio::select! {
            local = App::start_local(config) => local,
            () = stop.cancelled() => return Ok(()),
        };
        let local = local.map_err(|error| CommandError::of_server("cannot start", error))?;
        let served = serve_stdio(McpServer::for_one_user(local.tools(), folders), stop).await;
        local.stop();
        served.map_err(|error| CommandError::failed("mcp", error))
    });
    // Do not wait for a thread that still reads standard input.
    runtime.shutdown_background();
    ended
}
