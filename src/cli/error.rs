//! The error type of all commands and its mapping to exit codes.

use std::error::Error;
use std::process::ExitCode;

use crate::app::{WarmUpError, WorkerEnded, is_checkpoint_fault};
use crate::config::ConfigError;
use crate::hub::HubError;

/// Exit code for a wrong command line, as the argument parser has it.
const USAGE: u8 = 2;

/// Exit code if some files failed and the others are done.
const SOME_FAILED: u8 = 3;

/// Exit code for a bad configuration or a bad checkpoint: `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// Exit code of a server whose models cannot run inference, or whose worker ended unexpectedly: `EX_SOFTWARE` of
/// sysexits.h.
const CANNOT_COMPUTE: u8 = 70;

#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A checkpoint cannot be found, downloaded or converted.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A worker thread of the server ended or hung while it was serving.
    #[error(transparent)]
    Worker(#[from] WorkerEnded),
    /// A model was loaded but its warm-up failed.
    #[error("cannot start")]
    WarmUp(#[from] WarmUpError),
    /// Any other failed action.
    #[error("{action}")]
    Failed {
        /// Beginning of the error message, such as "the server failed".
        action: String,
        source: Box<dyn Error + Send + Sync>,
    },
    /// The command line is wrong in a way that only the command itself can tell.
    #[error("{0}")]
    Usage(String),
    /// Some files failed; the others are done.
    #[error("{0}")]
    SomeFailed(String),
    /// Nobody reads the answers on standard output any more, so the others are not computed. There is no message.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    /// The command ran, but its result is negative, such as a server that is not ready or a wrong answer.
    #[error("{0}")]
    Negative(String),
}

impl CommandError {
    pub(super) fn failed(
        action: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { action: action.into(), source: source.into() }
    }

    /// Converts the error that ended a server. An error other than [`WorkerEnded`] and [`WarmUpError`] becomes
    /// [`Self::Failed`] with the message `action`.
    pub(super) fn of_server(action: &str, error: anyhow::Error) -> Self {
        let error = match error.downcast::<WorkerEnded>() {
            Ok(ended) => return ended.into(),
            Err(error) => error,
        };
        match error.downcast::<WarmUpError>() {
            Ok(failed) => failed.into(),
            Err(error) => Self::failed(action, error),
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            // The system, not a setting, is at fault if a file of the model cannot be read.
            Self::Config(ConfigError::Model { reason, .. }) if !is_checkpoint_fault(&**reason) => {
                ExitCode::FAILURE
            }
            Self::Config(_) => ExitCode::from(BAD_CONFIGURATION),
            Self::Usage(_) => ExitCode::from(USAGE),
            Self::SomeFailed(_) => ExitCode::from(SOME_FAILED),
            Self::Worker(_) | Self::WarmUp(_) => ExitCode::from(CANNOT_COMPUTE),
            Self::Hub(error) if is_checkpoint_fault(error) => ExitCode::from(BAD_CONFIGURATION),
            Self::Failed { source, .. } if is_checkpoint_fault(&**source) => {
                ExitCode::from(BAD_CONFIGURATION)
            }
            Self::Hub(_) | Self::Failed { .. } | Self::ReaderGone | Self::Negative(_) => {
                ExitCode::FAILURE
            }
        }
    }

    /// Returns the message followed by the messages of its causes, outermost first.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_ended_by_itself_is_told_from_other_failures() {
        // `ExitCode` has no `PartialEq`, so compare the debug texts.
        let shown = |error: &CommandError| format!("{:?}", error.exit_code());
        let failed = CommandError::failed("cannot start", std::io::Error::other("disk full"));
        assert_eq!(shown(&WorkerEnded.into()), format!("{:?}", ExitCode::from(70)));
        assert_eq!(shown(&failed), format!("{:?}", ExitCode::from(1)));
    }

    #[test]
    fn what_ends_a_server_keeps_its_exit_code() {
        let shown = |error: anyhow::Error| {
            format!("{:?}", CommandError::of_server("the server failed", error).exit_code())
        };
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(shown(WorkerEnded.into()), code(70));
        assert_eq!(shown(WarmUpError::WorkerDown.into()), code(70));
        assert_eq!(shown(anyhow::Error::msg("disk full")), code(1));
    }

    #[test]
    fn a_model_that_the_system_cannot_read_is_no_bad_setting() {
        let reason = HubError::Io {
            action: "read",
            path: "model".into(),
            source: std::io::Error::from_raw_os_error(5),
        };
        let (setting, origin) = ("models.0".to_owned(), "from --model".to_owned());
        let error = ConfigError::Model { setting, origin, reason: Box::new(reason) };
        let error = CommandError::from(error);
        assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::FAILURE));
        let text = error.with_causes();
        assert!(text.starts_with("models.0 (from --model): cannot read model: "), "{text}");
        assert!(text.contains("os error 5"), "{text}");
    }

    #[test]
    fn causes_follow_the_message() {
        let inner = std::io::Error::other("disk full");
        let error = CommandError::failed("cannot start", inner);
        assert_eq!(error.with_causes(), "cannot start: disk full");
    }
}
