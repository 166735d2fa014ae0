//! Configuration errors. Each names the setting, its origin and what is accepted, so that the user can fix it. `cli`
//! ends the process with exit code 78 on any of them.

use std::io;
use std::path::PathBuf;

use crate::hub::HubError;

/// Why the configuration was rejected. At this point, nothing has been started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The value of a setting is not accepted.
    #[error("{setting} = {value} ({origin}) is invalid; accepted: {accepted}")]
    Invalid {
        /// Name of the setting: `section.key`.
        setting: String,
        /// Value of the setting as written; hidden if it is a secret.
        value: String,
        /// Origin of the value, such as "from --listen" or "the default".
        origin: String,
        /// Description of the accepted values.
        accepted: String,
    },
    /// A setting without a default has no value.
    #[error("{setting} ({origin}) is missing; {advice}")]
    Missing {
        /// Name of the setting, such as `models.0.source`.
        setting: String,
        /// Origin of the table that lacks it.
        origin: String,
        /// What to write there.
        advice: &'static str,
    },
    /// The source of a model cannot be parsed, or its directory contains no checkpoint.
    #[error("{setting} ({origin})")]
    Model {
        /// Name of the list entry, such as `models.0`.
        setting: String,
        /// Origin of the list of models.
        origin: String,
        /// The error that the `hub` folder reported for this source.
        #[source]
        reason: Box<HubError>,
    },
    /// A command needs models, but none is named and this binary has no demo models.
    #[error(
        "no model is configured, and this binary was built without the demo models; name a model with --model SRC, in [[models]] or in BLIP__MODELS; SRC is a directory or a hub id such as Salesforce/blip-image-captioning-large"
    )]
    NoModel,
    /// No setting has this name.
    #[error("unknown setting {setting} ({origin}); accepted: {accepted}")]
    Unknown {
        /// The unknown name, `section.key`.
        setting: String,
        /// Origin of the name, such as a file or a variable.
        origin: String,
        /// Existing keys of that section, or existing sections.
        accepted: String,
    },
    /// The settings file cannot be read.
    #[error("cannot read the settings file {}", path.display())]
    File {
        /// Path of the settings file.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The settings file is not valid TOML.
    #[error("the settings file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// Path of the settings file.
        path: PathBuf,
        /// Line number and error of the TOML parser, without the line itself.
        reason: String,
    },
}
