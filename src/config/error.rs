//! What is wrong with a setting, in words that let its writer mend it. The process ends with exit code 78 on any of these.

use std::io;
use std::path::PathBuf;

use crate::hub::HubError;

/// Why the configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that cannot be worked with.
    #[error("{setting} = {value} ({origin}) is not accepted; accepted: {accepted}")]
    Invalid {
        /// The setting's name: `section.key`.
        setting: String,
        /// Its value as written.
        value: String,
        /// Where the value comes from.
        origin: String,
        /// What is accepted.
        accepted: String,
    },
    /// A model whose source cannot be read.
    #[error("{setting} ({origin}): {reason}")]
    Model {
        /// Which of them: `models.0`.
        setting: String,
        /// Where it comes from.
        origin: String,
        /// What is wrong with it.
        reason: Box<HubError>,
    },
    /// Serving was asked for, no model is named anywhere, and the binary holds no demo models.
    #[error(
        "no model is named, and no demo models are built into this binary; name one with --model SRC, in [[models]] or in BLIP__MODELS; SRC is a directory or a hub id such as Salesforce/blip-image-captioning-large"
    )]
    NoModel,
    /// A name that is none.
    #[error("there is no setting {setting} ({origin}); accepted: {accepted}")]
    Unknown {
        /// The name: `section.key`.
        setting: String,
        /// Where it stands.
        origin: String,
        /// The names that are there.
        accepted: String,
    },
    /// A file that cannot be read.
    #[error("the configuration file {} cannot be read", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that is no TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
}
