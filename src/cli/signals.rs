//! Unix signals. The first SIGTERM or SIGINT starts the graceful shutdown (drain); the second ends the process at once.
//! SIGHUP reloads the files of API keys and TLS certificates. `serve` installs the handlers for all these signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::logging;

/// Exit code (128 + SIGINT) if a second signal ends the process without waiting for requests.
const INTERRUPTED: i32 = 130;

/// Returns a token that the first signal cancels. The handlers are installed before this function returns.
///
/// # Errors
/// When the operating system refuses a signal handler.
pub(super) fn shutdown() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        first.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "second signal received; ending at once");
        logging::flush();
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}

/// Returns the stream of SIGHUPs. After this call, a SIGHUP no longer ends the process.
///
/// # Errors
/// When the operating system refuses the signal handler.
pub(super) fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Calls `reload` on every SIGHUP.
pub(super) async fn on_hangup(mut hangups: Signal, reload: impl Fn()) {
    while hangups.recv().await.is_some() {
        tracing::info!(
            signal = "SIGHUP",
            "reloading the files of API keys and TLS certificates, if any are configured"
        );
        reload();
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_cancels_the_token_and_the_process_lives_on() {
        let token = shutdown().unwrap();
        assert!(!token.is_cancelled());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        token.cancelled().await;
    }
}
