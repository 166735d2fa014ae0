//! `serve`: configuration to a running server. The port is bound before the models are loaded, so that a taken port
//! fails at once; what happens in between is `app`'s. Where no model is named anywhere, the demo models are served.

use tokio::net::TcpListener;

use super::error::CommandError;
use super::signals;
use crate::app::{App, WorkerEnded};
use crate::config::{Config, ConfigError};
use crate::hub::ModelSource;

pub(super) fn run(mut config: Config) -> Result<(), CommandError> {
    if config.models.is_empty() {
        config.models = ModelSource::demo();
    }
    // Built without demo models.
    if config.models.is_empty() {
        return Err(ConfigError::NoModel.into());
    }
    run_app(config, App::build)
}

/// Runs the server that `build` makes of the configuration, to its end.
pub(super) fn run_app(
    config: Config,
    build: impl FnOnce(Config) -> anyhow::Result<App>,
) -> Result<(), CommandError> {
    let runtime = super::runtime()?;
    let served = runtime.block_on(serve(config, build));
    // A load that is still running in a blocking thread must not hold the process.
    runtime.shutdown_background();
    served
}

async fn serve(
    config: Config,
    build: impl FnOnce(Config) -> anyhow::Result<App>,
) -> Result<(), CommandError> {
    let shutdown = signals::shutdown()
        .map_err(|error| CommandError::failed("cannot listen for signals", error))?;
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| CommandError::failed(format!("cannot listen on {listen}"), error))?;
    let app = build(config).map_err(|error| CommandError::failed("cannot start", error))?;
    app.serve(listener, shutdown).await.map_err(|error| match error.downcast::<WorkerEnded>() {
        Ok(ended) => ended.into(),
        Err(error) => CommandError::failed("the server failed", error),
    })
}
