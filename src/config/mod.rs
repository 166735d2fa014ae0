//! Configuration: turns defaults, file, environment and flags into the validated settings of each folder.
//!
//! Flags override the environment, the environment overrides the file, and the file overrides the defaults. Each value
//! remembers its origin, so the error about an invalid value contains the name of the setting, the value, its origin
//! and the accepted values.
//!
//! Each folder declares its own settings, in a type that implements `Section` (`src/settings.rs`).
//!
//! - `sections`: lists the settings types of all folders, and contains the values as they are written in a file.
//! - `compute`, `server`, `models`: the settings that belong to no other folder.
//! - `layers`: merges the layers, remembers origins, and fills the settings types.
//! - `load`: the only reader of the environment; tests pass a map.
//! - `otel_variables`: the standard variables `OTEL_*`, as settings of `[tracing]`.
//! - `service_manager`: where a service manager such as systemd expects notifications.
//! - `validate`: builds [`Config`], and checks the rules across folders.
//!
//! Only `app`, `cli` and `main` import this folder; every other folder receives its own settings.

mod compute;
mod error;
mod layers;
mod load;
mod models;
mod otel_variables;
mod sections;
mod server;
mod service_manager;
mod validate;

use std::net::SocketAddr;

pub use compute::{ComputeSettings, DeviceChoice, DtypeChoice, Gpus};
pub use error::ConfigError;
pub use load::{Environment, Flags, load, process_environment};
pub use sections::RawConfig;
pub use server::DrainSettings;
pub use service_manager::{NotifySocket, ServiceManager};

use crate::engine::EngineSettings;
use crate::fetch::FetchSettings;
use crate::http::HttpSettings;
use crate::hub::{HubSettings, ModelSource};
use crate::images::ImagesSettings;
use crate::telemetry::logging::LoggingSettings;
use crate::telemetry::trace::TraceSettings;

/// The validated configuration of the whole process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the public listener; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Address of a separate listener for health, metrics and info; `None` if `listen` serves them.
    pub operations_listen: Option<SocketAddr>,
    /// Models in the configured order; the first model of each role is the default for that role. Names are unique. The
    /// list may be empty.
    pub models: Vec<ModelSource>,
    /// Device, number format, instruction set and threads; `auto` is not resolved yet.
    pub compute: ComputeSettings,
    /// Bounds of admission control, batching and caches in the engine.
    pub engine: EngineSettings,
    /// Settings of the decoding pool and the pixel cache.
    pub images: ImagesSettings,
    /// Limits, deadlines and switches of the HTTP server, including the limits of one image and one text.
    pub http: HttpSettings,
    /// Settings for fetching images by URL.
    pub fetch: FetchSettings,
    /// Endpoint, cache and token for downloading weights.
    pub hub: HubSettings,
    /// Format and filter of the log.
    pub log: LoggingSettings,
    /// Whether and where traces are exported.
    pub tracing: TraceSettings,
    /// Times of the graceful shutdown.
    pub drain: DrainSettings,
    /// The service manager that waits for notifications; `None` if there is none.
    pub service_manager: Option<ServiceManager>,
    /// Warnings for the user, about variables that look like settings but have no effect.
    pub warnings: Vec<String>,
    raw: RawConfig,
}

impl Config {
    /// Formats the effective settings as a TOML file, with secrets hidden.
    #[must_use]
    pub fn to_toml(&self) -> String {
        self.raw.to_toml()
    }
}
