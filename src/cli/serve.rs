//! The command `serve`: turns a configuration into a running server. The command `mock` starts its server with
//! `run_app`, too.
//!
//! The order matters: first the models are checked as far as possible without reading their weights; then the ports are
//! bound, so that a port that is already in use is reported at once; then `app` loads the models. If no model is
//! configured, the demo models are served.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::error::CommandError;
use super::signals;
use crate::app::{self, App, port};
use crate::config::{Config, ConfigError};
use crate::http::{Listener, Tls};
use crate::hub::ModelSource;

pub(super) fn run(config: Config) -> Result<(), CommandError> {
    let config = with_models(config)?;
    app::check_models(&config).map_err(|error| CommandError::failed("cannot start", error))?;
    run_app(config, App::build)
}

/// Adds the demo models if no model is configured.
pub(super) fn with_models(mut config: Config) -> Result<Config, CommandError> {
    if config.models.is_empty() {
        config.models = ModelSource::demo();
    }
    // If this binary was built without the demo models, the list is still empty.
    if config.models.is_empty() {
        return Err(ConfigError::NoModel.into());
    }
    Ok(config)
}

/// Runs the server that `build` creates from the configuration, until it has shut down.
pub(super) fn run_app(
    config: Config,
    build: impl FnOnce(Config) -> anyhow::Result<App>,
) -> Result<(), CommandError> {
    let runtime = super::runtime()?;
    let served = runtime.block_on(serve(config, build));
    // Do not wait for a blocking thread that may still be loading models.
    runtime.shutdown_background();
    served
}

async fn serve(
    config: Config,
    build: impl FnOnce(Config) -> anyhow::Result<App>,
) -> Result<(), CommandError> {
    let shutdown = signals::shutdown()
        .map_err(|error| CommandError::failed("cannot listen for signals", error))?;
    let hangups = signals::hangups()
        .map_err(|error| CommandError::failed("cannot listen for signals", error))?;
    let mut listener = Listener::from(bind(config.listen).await?);
    if let Some(tls) = &config.http.tls {
        let tls = Tls::load(tls)
            .map_err(|error| CommandError::failed("cannot load the TLS certificate", error))?;
        listener = listener.with_tls(tls);
    }
    let operations = match config.operations_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let mut app = build(config).map_err(|error| CommandError::failed("cannot start", error))?;
    if let Some(operations) = operations {
        app = app.with_operations(operations);
    }
    let state = app.state().clone();
    tokio::spawn(signals::on_hangup(hangups, move || state.reload_files()));
    let served = app.serve(listener, shutdown).await;
    served.map_err(|error| CommandError::of_server("the server failed", error))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = port::explain(error.kind());
        let advice = advice.map_or(String::new(), |(why, advice)| format!(": {why}; {advice}"));
        CommandError::failed(format!("cannot listen on {address}{advice}"), error)
    })
}
