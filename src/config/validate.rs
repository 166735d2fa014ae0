//! Builds [`Config`] from the merged layers. Each settings type checks its own values; the rules about settings of
//! different sections, and those that depend on files or on other folders, are here.

use super::compute::ComputeSettings;
use super::layers::Layers;
use super::models;
use super::server::{DrainSettings, ListenSettings};
use super::{Config, ConfigError};
use crate::engine::EngineSettings;
use crate::http::{
    AuthSettings, ConnectionSettings, HttpSettings, RateLimitSettings, Tls, TlsSettings,
};
use crate::hub::HubSettings;
use crate::telemetry::trace::TraceSettings;

/// Lower bound of `engine.worker_hang_limit_ms`: an idle worker sends a heartbeat only every second, so with a lower
/// limit an idle worker could be mistaken for a hung one.
const MIN_HANG_LIMIT_MILLIS: u64 = 5000;

/// Pairs of settings. The first of each pair must not exceed the second.
const PAIRS: [(&str, &str); 7] = [
    // A call that the queue cannot hold at all could never be admitted.
    ("limits.max_rows", "engine.capacity_rows"),
    ("limits.max_rank_candidates", "engine.capacity_rows"),
    ("limits.max_body_bytes", "engine.capacity_bytes"),
    // A raw body is the most compact encoding of an image, so an image never fits into a body that is smaller than the
    // image.
    ("input.max_image_bytes", "limits.max_body_bytes"),
    // A request must not be admitted if it may have to wait longer than its deadline.
    ("engine.max_queue_wait_ms", "server.deadline_ms"),
    ("fetch.connect_timeout_ms", "fetch.total_timeout_ms"),
    ("server.body_idle_timeout_ms", "server.body_total_timeout_ms"),
];

/// Checks every value and builds the settings of each folder. Returns an error about the first invalid value.
pub(super) fn validate(layers: &Layers, warnings: Vec<String>) -> Result<Config, ConfigError> {
    let raw = layers.effective()?;
    check_pairs(layers)?;
    let listen: ListenSettings = layers.read()?;
    let drain: DrainSettings = layers.read()?;
    Ok(Config {
        listen: listen.public(),
        operations_listen: listen.operations(),
        models: models::resolve(&raw.models, layers)?,
        compute: layers.read::<ComputeSettings>()?,
        engine: engine(layers)?,
        images: layers.read()?,
        http: http(layers, &listen, drain)?,
        fetch: layers.read()?,
        hub: HubSettings { retry: layers.read()?, ..layers.read()? },
        log: layers.read()?,
        tracing: tracing(layers)?,
        drain,
        service_manager: None,
        warnings,
        raw: raw.without_secrets(),
    })
}

fn engine(layers: &Layers) -> Result<EngineSettings, ConfigError> {
    let hang_limit = "engine.worker_hang_limit_ms";
    if layers.number(hang_limit).is_some_and(|millis| millis < MIN_HANG_LIMIT_MILLIS) {
        let accepted = "5000 or more: an idle worker sends a heartbeat every second";
        return Err(layers.invalid(hang_limit, accepted));
    }
    layers.read()
}

/// Assembles the settings of the HTTP side from their sections.
fn http(
    layers: &Layers,
    listen: &ListenSettings,
    drain: DrainSettings,
) -> Result<HttpSettings, ConfigError> {
    let connections: ConnectionSettings = layers.read()?;
    Ok(HttpSettings {
        compat: layers.read()?,
        mcp: layers.read()?,
        bulk: layers.read()?,
        limits: layers.read()?,
        input: layers.read()?,
        connections: ConnectionSettings { drain_timeout: drain.timeout, ..connections },
        access_log: layers.read()?,
        auth: layers.read::<AuthSettings>()?.if_keys(),
        rate_limit: layers.read::<RateLimitSettings>()?.if_limited(),
        tls: tls(layers)?,
        on_loopback: listen.public().ip().is_loopback(),
        operations_listener: listen.operations().is_some(),
        ..layers.read()?
    })
}

/// Returns the paths of the TLS certificate and its key; `None` if neither is set. The files are loaded here only to
/// check them, so that the server does not start with invalid files.
fn tls(layers: &Layers) -> Result<Option<TlsSettings>, ConfigError> {
    let Some(settings) = layers.read::<TlsSettings>()?.if_set() else { return Ok(None) };
    Tls::load(&settings).map_err(|error| {
        let accepted = format!("a PEM file (certificate and key must match); {}", error.reason);
        layers.invalid(&format!("server.{}", error.setting), accepted)
    })?;
    Ok(Some(settings))
}

/// Reads the settings of traces, and the file of certificates to check it.
fn tracing(layers: &Layers) -> Result<TraceSettings, ConfigError> {
    let settings: TraceSettings = layers.read()?;
    settings.load_certificates().map_err(|problem| {
        let accepted = format!("a PEM file of certificates, or nothing; {problem}");
        layers.invalid("tracing.certificate", accepted)
    })?;
    Ok(settings)
}

/// Checks [`PAIRS`]. A value that is not a number is reported when its section is read.
fn check_pairs(layers: &Layers) -> Result<(), ConfigError> {
    for (small, large) in PAIRS {
        let (Some(value), Some(most)) = (layers.number(small), layers.number(large)) else {
            continue;
        };
        if value > most {
            let origin = layers.origin(large);
            let accepted = format!("at most {large}, which is {most} ({origin})");
            return Err(layers.invalid(small, accepted));
        }
    }
    Ok(())
}
