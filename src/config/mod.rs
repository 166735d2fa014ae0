//! What file, environment and flags say, turned into the validated settings of each folder.
//!
//! Defaults lie under the file, the file under the environment, the environment under flags. Each value remembers
//! where it came from, so a wrong one is reported with its name, its value, its origin and what is accepted.
//!
//! - `raw`: every setting as it is written: plain numbers and strings, units in the names.
//! - `defaults`: their defaults, taken from the folders' own settings types.
//! - `layers`: file, environment and flags as layers that know their origin.
//! - `load`: the only reader of the environment; tests pass a map.
//! - `validate`: raw values to [`Config`], with the checks of each folder and those across folders.
//! - `access`: the part of it about keys, limits, proxies and TLS.
//!
//! Only `app`, `cli` and `main` import this folder; everybody else receives its own settings.

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

/// Everything the process is told, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where health, metrics and info are served apart from everything else; `None` serves them on `listen`.
    pub operations_listen: Option<SocketAddr>,
    /// Models in the order given; the first of a role is its default. Names are distinct. May be empty.
    pub models: Vec<ModelSource>,
    /// What computes, in which number format, on how many threads.
    pub compute: ComputeSettings,
    /// Bounds and policy of the engine.
    pub engine: EngineSettings,
    /// The decoding pool and the pixel cache.
    pub images: ImagesSettings,
    /// Limits, deadlines and switches of the HTTP side; the limits of one image and one text in it.
    pub http: HttpSettings,
    /// Images by URL.
    pub fetch: FetchSettings,
    /// Where weights come from.
    pub hub: HubSettings,
    /// How and what is logged.
    pub log: LoggingSettings,
    /// How long the process goes on after the first signal.
    pub drain: DrainSettings,
    /// What its writer may have meant otherwise: variables that look like settings and are none.
    pub warnings: Vec<String>,
    raw: RawConfig,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComputeSettings {
    /// Which device.
    pub device: DeviceChoice,
    /// Number format of weights and activations.
    pub dtype: DtypeChoice,
    /// Instructions of the CPU's kernels; `None` takes the most that the CPU has.
    pub cpu_isa: Option<Level>,
    /// Threads of the models' arithmetic; `None` takes what quota and affinity allow.
    pub threads: Option<NonZeroUsize>,
}

/// How long the process goes on after the first signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// Not ready, but still accepting: time for load balancers to notice.
    pub delay: Duration,
    /// Longest time that admitted requests have after that.
    pub timeout: Duration,
}

impl Config {
    /// The effective settings as a TOML file, secrets hidden.
    #[must_use]
    pub fn to_toml(&self) -> String {
        self.raw.to_toml()
    }
}
