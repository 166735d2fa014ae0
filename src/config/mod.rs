//! Configuration: turns defaults, file, environment and flags into the validated settings of each folder.
//!
//! Flags override the environment, the environment overrides the file, and the file overrides the defaults. Each value
//! remembers its origin, so an invalid one is reported with its name, its value, its origin and the accepted values.
//!
//! - `raw`: every setting as it is written in a file: plain numbers and strings, units in the names.
//! - `defaults`: the defaults, taken from the settings types of the folders.
//! - `layers`: merges the layers and remembers origins.
//! - `load`: the only reader of the environment; tests pass a map.
//! - `choice`: settings whose value is one of a few names.
//! - `validate`: converts raw values to [`Config`], with the checks of each folder and those across folders.
//! - `access`: the part of `validate` for keys, limits, proxies and TLS.
//!
//! Only `app`, `cli` and `main` import this folder; every other folder receives its own settings.

mod access;
mod choice;
mod defaults;
mod error;
mod layers;
mod load;
mod raw;
mod validate;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

pub use choice::{DeviceChoice, DtypeChoice};
pub use error::ConfigError;
pub use load::{Environment, Flags, load, process_environment};
pub use raw::RawConfig;

use crate::kernels::isa::Level;

use crate::engine::EngineSettings;
use crate::fetch::FetchSettings;
use crate::http::HttpSettings;
use crate::hub::{HubSettings, ModelSource};
use crate::images::ImagesSettings;
use crate::telemetry::logging::LoggingSettings;

/// The validated configuration of the whole process.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the public listener; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Address of a separate listener for health, metrics and info; `None` serves them on `listen`.
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
    /// Times of the graceful shutdown.
    pub drain: DrainSettings,
    /// Warnings for the user, about variables that look like settings but have no effect.
    pub warnings: Vec<String>,
    raw: RawConfig,
}

/// Settings of the device that computes the models, as configured: `auto` is not resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComputeSettings {
    /// Device that runs the models.
    pub device: DeviceChoice,
    /// Number format of weights and activations.
    pub dtype: DtypeChoice,
    /// Instruction set of the CPU kernels; `None` picks the best that the CPU supports.
    pub cpu_isa: Option<Level>,
    /// Number of threads that compute the models; `None` means as many as the CPU quota and affinity allow.
    pub threads: Option<NonZeroUsize>,
}

/// How long the process continues after the first signal to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// Time for which the server still accepts requests but reports not ready, so that load balancers notice.
    pub delay: Duration,
    /// Longest time that requests in flight may still take after `delay`.
    pub timeout: Duration,
}

impl Config {
    /// Formats the effective settings as a TOML file, with secrets hidden.
    #[must_use]
    pub fn to_toml(&self) -> String {
        self.raw.to_toml()
    }
}
